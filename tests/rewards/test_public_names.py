"""The names that users of the verifiers rely on, and that importing them is cheap."""

import subprocess
import sys

import pytest

from volley.rewards import code, math

PROGRAM = """
import sys
from volley.rewards.code import verify as verify_code
from volley.rewards.math import verify as verify_math
print(*sorted({"aiohttp", "asyncio", "numpy", "ray", "sympy", "torch", "transformers"} & set(sys.modules)))
"""


def test_verify_math() -> None:
    assert math.verify("The answer is 0.5.", r"\frac{1}{2}")
    assert not math.verify("The answer is 0.6.", r"\frac{1}{2}")


@pytest.mark.usefixtures("started_sandbox")
def test_verify_code() -> None:
    response = "```python\ndef square(x):\n    return x * x\n```"
    assert code.verify(response, ["assert square(3) == 9"])
    assert not code.verify(response, ["assert square(3) == 10"])
    assert code.verify("```python\nprint(2 * int(input()))\n```", [{"input": "4", "output": "8"}])


def test_the_verifiers_import_no_large_package() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
