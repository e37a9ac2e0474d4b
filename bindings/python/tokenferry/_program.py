"""The `ferry` command of the wheel: the program that lies beside this file."""

import os
import sys


def main():
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "ferry")
    os.execv(program, ["ferry", *sys.argv[1:]])
