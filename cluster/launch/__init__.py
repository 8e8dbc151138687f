"""Where learner and engines run: the launcher protocol and the local launcher."""
