"""Where learner and engines run: the launcher interface, and the launcher for one process."""
