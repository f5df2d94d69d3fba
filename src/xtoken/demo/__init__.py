"""The packaged demonstration: a real teacher, a student with another tokenizer, one page."""

from xtoken.demo.pairs import PAIRS
from xtoken.demo.run import DemoResult, run_demo

__all__ = ["PAIRS", "DemoResult", "run_demo"]
