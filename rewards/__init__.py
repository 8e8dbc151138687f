"""Rewards: text in, number out.

    config, item, terms     the configuration, what a reward sees and returns, and the interface of group terms
    think_format, json_schema, reward_model, length/, math/, code/, judge/     the built-in rewards
    sandbox/                runs untrusted programs, for code/
    rubric/                 the registry of built-in rewards, loading of user functions, and the weighted sum
    scoring/                the service that scores completions in processes that can be killed

Nothing heavy is imported until a reward model is loaded. Of the other packages this one imports only
`volley.rollout.types` and `volley.rollout.errors`.
"""
