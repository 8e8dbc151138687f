"""Recipes: what is read is what was meant, and what is wrong is said in one sentence."""

from pathlib import Path

import pytest
import yaml

from volley.cluster.recipe.config import Recipe, dump_recipe, load_recipe, parse_recipe, read_content
from volley.cluster.recipe.stages import stage_names
from volley.rollout.errors import ConfigError

MINIMAL = {"name": "a", "model": "m", "data": {"train": "t.jsonl"}, "steps": 4}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_a_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            **MINIMAL,
            "rewards": ["math", {"name": "my_file.py:concise", "weight": 0.2}],
            "loss": {"name": "grpo", "clip_high": 0.28},
            "learner": {"betas": [0.9, 0.95], "lr": "1e-6"},
            "rollout": {"stop": ["\n\n"]},
        }
    )
    assert recipe.learner.lr == 1e-6
    assert recipe.rewards[1].label == "concise"
    assert recipe.loss.options == {"clip_high": 0.28}
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_an_option_can_be_added_to_a_loss_given_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump({**MINIMAL, "loss": "grpo"}))
    loss = load_recipe(path, ["loss.beta=0.04"]).loss
    assert (loss.name, loss.options) == ("grpo", {"beta": 0.04})
    loss = load_recipe(path, ["loss=dpo", "loss.beta=0.2"]).loss
    assert (loss.name, loss.options) == ("dpo", {"beta": 0.2})


def test_a_shipped_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("gsm8k-grpo").name == "gsm8k-grpo"
    Path("gsm8k-grpo").write_text(yaml.safe_dump(MINIMAL))
    assert load_recipe("gsm8k-grpo").name == "a", "a file of the user comes first"
    with pytest.raises(ConfigError, match=r"recipe 'gsm8k' does not exist; .* name of a shipped recipe: .*gsm8k-grpo"):
        load_recipe("gsm8k")


def test_groups_need_not_be_a_multiple_of_the_ranks() -> None:
    recipe = parse_recipe({**MINIMAL, "groups_per_step": 3, "learner": {"ranks": 2}, "launcher": "ray"})
    assert recipe.groups_per_step % recipe.learner.ranks == 1


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(MINIMAL))
    recipe = load_recipe(path, ["steps=7", "rollout.max_tokens=64", "loss.clip_high=0.3", "eval_every=0", "seed=3"])
    assert (recipe.steps, recipe.rollout.max_tokens, recipe.seed) == (7, 64, 3)
    assert recipe.loss.options == {"clip_high": 0.3}


def test_on_a_cluster_rollouts_and_learning_overlap_unless_the_recipe_says_otherwise() -> None:
    assert parse_recipe(MINIMAL).max_staleness == 0
    assert parse_recipe({**MINIMAL, "launcher": "ray"}).max_staleness == 2
    assert parse_recipe({**MINIMAL, "launcher": "ray", "max_staleness": 0}).max_staleness == 0


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_parses(path: Path) -> None:
    names = stage_names(read_content(str(path), ()))
    for overrides in [[f"stage={name}"] for name in names] or [[]]:
        assert isinstance(load_recipe(str(path), overrides), Recipe)


STAGED = (
    "name: a\nmodel: m\nsteps: 5\ndata: {train: t}\nlearner: {lr: 1.0e-3, dtype: fp32}\nloss: {name: dpo, beta: 0.3}\n"
)


def test_a_stage_overrides_the_recipes_keys(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(STAGED + "stages: [{name: one, loss: kto}, {name: two, steps: 7, learner: {lr: 1.0e-4}}]\n")
    one, two = (load_recipe(str(path), [f"stage={name}"]) for name in ("one", "two"))
    assert (one.name, one.model, one.steps, one.loss.name, one.loss.options) == ("a-one", "m", 5, "kto", {})
    assert two.model.endswith("runs/a-one/model")
    assert (two.name, two.steps, two.loss.options, two.learner.lr) == ("a-two", 7, {"beta": 0.3}, 1e-4)
    assert two.learner.dtype == "fp32"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[]", "at least one stage"),
        ("[{loss: kto}]", "every stage needs a name"),
        ("[{name: x}, {name: x}]", "duplicate stage name 'x'"),
        ("[{name: x}]", "has stages; add stage=NAME, which is one of x"),
    ],
)
def test_bad_stages(tmp_path: Path, stages: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(STAGED + f"stages: {stages}\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(path))


BAD = [
    ({"stepz": 3}, "unknown key 'stepz' in the recipe; did you mean 'steps'?"),
    ({"rollout": {"max_tokenz": 3}}, "unknown key 'rollout.max_tokenz' in rollout; did you mean 'rollout.max_tokens'?"),
    ({"steps": "many"}, "steps is 'many'; it must be a whole number"),
    ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
    ({"steps": True}, "steps is True; it must be a whole number"),
    ({"steps": 0}, "steps is 0; it must be at least 1"),
    ({"learner": {"lr": float("nan")}}, "learner.lr is nan; it must be a finite number"),
    ({"learner": {"zero_stage": 4}}, "learner.zero_stage is 4; it must be one of 0, 1, 2, 3"),
    ({"learner": {"cpu_offload": True, "zero_stage": 0}}, "stage 0 has nothing to offload"),
    ({"learner": {"ranks": 2}}, "local launcher runs one of each"),
    ({"rollout": 3}, "rollout is 3; it must be a section with keys"),
    ({"rollout": {"temperature": 0}}, "rollout.temperature is 0.0; it must be above 0"),
    ({"rollout": {"top_p": 1.5}}, "rollout.top_p is 1.5"),
    ({"rollout": {"stop": "x"}}, "rollout.stop is 'x'; it must be a list"),
    ({"publish_every": 9}, "publish_every is 9 but the run has only 4 steps"),
    ({"eval_every": 2}, "data.test names no test data"),
    ({"launcher": "slurm"}, "launcher is 'slurm'"),
    ({"launcher": "ray", "deadline_s": 60}, "cluster.stall_s is 180 and deadline_s is 60"),
    ({"launcher": "ray", "transfer": {"transfer_s": 9000}}, "transfer.transfer_s is 9000 and deadline_s is 1800"),
    ({"launcher": "ray", "transfer": {"connect_s": 1800}}, "transfer.connect_s is 1800 and deadline_s is 1800"),
    ({"launcher": "ray", "transfer": {"commit_s": 1801}}, "transfer.commit_s is 1801 and deadline_s is 1800"),
    ({"launcher": "ray", "transfer": {"backend": "rdma"}}, "transfer.backend is 'rdma'"),
    ({"launcher": "ray", "transfer": {"connect_s": 0}}, "transfer.connect_s is 0"),
    ({"launcher": "ray", "cluster": {"stall_s": -1}}, "cluster.stall_s is -1"),
    ({"launcher": "ray", "rollout": {"workers": 2, "min_workers": 3}}, "rollout.min_workers is 3"),
    ({"name": "../x"}, "name is '../x'"),
    ({"rewards": ["math", "math"]}, "duplicate reward label 'math'"),
    ({"data": {"train": "t", "columns": {"promt": "q"}}}, "'promt' is not a column Volley reads"),
    ({"data": {}}, "the recipe has no 'data.train'; add it"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_wrong_value_is_reported_in_one_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**MINIMAL, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "recipe.yaml:2: duplicate key 'name'"),
        ("name: !!python/object/apply:os.system ['true']\n", "object tags"),
        ("name: [a\n", "recipe.yaml:2"),
        ("- a\n", "holds no keys"),
        ("", "holds no keys"),
    ],
)
def test_yaml_that_is_not_a_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        load_recipe(write(tmp_path, text))


def test_an_override_needs_a_key_and_a_section(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError, match="is not an override"):
        load_recipe(path, ["steps"])
    with pytest.raises(ConfigError, match="'steps' is not a section"):
        load_recipe(path, ["steps.x=1"])
