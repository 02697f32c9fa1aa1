"""utils.environment: what a number was measured with, and silence that leaves nothing behind."""

import logging
import os
import sys

from utils import environment, files


def test_the_environment_is_plain_and_says_what_matters(tmp_path):
    facts = environment.describe()
    files.write_json(tmp_path / "environment.json", facts)
    assert {"cpu", "cores", "python", "tensorflow", "keras"} <= set(facts)
    assert facts["cpu"] in environment.sentence()


def test_quiet_holds_back_python_and_descriptors_gives_them_back_and_spares_log_handlers_made_inside(capfd):
    logger = logging.getLogger("made inside")
    with environment.quiet():
        logger.addHandler(logging.StreamHandler())
        print("from Python")
        os.write(1, b"from below")
    print("afterwards")
    sys.stdout.flush()
    logger.warning("later")
    said = capfd.readouterr()
    assert said.out == "afterwards\n" and "Logging error" not in said.err
