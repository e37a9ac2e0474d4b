"""What a wheel holds, installed by the component that fills it: no second build is needed for that."""

import os
import pathlib
import subprocess
import sys

import pytest
import tokenferry


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    build = os.environ.get("FERRY_BUILD_DIR") or pathlib.Path(tokenferry.__file__).parents[2]
    prefix = tmp_path_factory.mktemp("installed")
    subprocess.run(["cmake", "--install", build, "--prefix", prefix, "--component", "python"], check=True,
                   capture_output=True, timeout=60)
    return prefix


def run(code, prefix):
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60,
                          env=os.environ | dict(PYTHONPATH=str(prefix)))


def test_the_package_is_whole(installed):
    done = run("import tokenferry, tokenferry.compat as c; print(tokenferry.__file__);"
               "[c.enable(n) for n in c.MODULES]; import deep_ep, pplx_kernels, eplb, mooncake.mooncake_ep_buffer", installed)
    assert done.returncode == 0 and done.stdout.startswith(str(installed)), done.stderr
    files = {p.name for p in (installed / "tokenferry").iterdir()}
    assert {"py.typed", "_core.pyi", "bin", "compat"} <= files


def test_the_program_is_in_it(installed):
    done = run("import sys; sys.argv = ['ferry', '--version']; from tokenferry._program import main; main()", installed)
    assert done.stdout == f"ferry {tokenferry.__version__}\n", done.stderr


def test_stubs_and_docstrings_say_what_there_is():
    text = (pathlib.Path(tokenferry.__file__).parent / "_core.pyi").read_text()
    for name in ("def moe_forward_from_topk", "def dispatch_send", "class ExpertRows", "class Comm"):
        assert name in text
    for thing in (tokenferry.AllToAll, tokenferry.Experts, tokenferry.Engine, tokenferry.eplb.plan,
                  tokenferry.Comm.from_env, tokenferry.AllToAll.combine_recv, tokenferry.ExpertRows):
        assert thing.__doc__
