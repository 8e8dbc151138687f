"""The folders of the math verifier: each imports only those before it."""

from tests.test_imports import FILES, imports, module_of

MATH = "volley.rewards.math"
ALLOWED = {
    f"{MATH}.expressions": (f"{MATH}.expressions", "volley.rewards.item"),
    f"{MATH}.answers": (f"{MATH}.answers", f"{MATH}.expressions"),
    MATH: (MATH, "volley.rewards.item", "volley.rewards.think_format"),
}


def test_folders_import_only_those_before_them() -> None:
    num_modules = 0
    for path in FILES:
        folder = module_of(path).rpartition(".")[0]
        if path.name == "__init__.py" or folder not in ALLOWED:
            continue
        num_modules += 1
        for name in imports(path):
            if name.startswith("volley."):
                assert any(name == each or name.startswith(f"{each}.") for each in ALLOWED[folder]), (path.name, name)
    assert num_modules > 25
