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


def test_quiet_holds_back_python_and_descriptors_and_gives_them_back(capfd):
    with environment.quiet():
        print("from Python")
        os.write(1, b"from below")
    print("afterwards")
    sys.stdout.flush()
    assert capfd.readouterr().out == "afterwards\n"


def test_a_log_handler_that_was_made_inside_quiet_works_afterwards(capfd):
    logger = logging.getLogger("made inside")
    with environment.quiet():
        logger.addHandler(logging.StreamHandler())
    logger.warning("later")
    assert "Logging error" not in capfd.readouterr().err
