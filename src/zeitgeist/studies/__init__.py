"""Claims as experiments, one file per system. `reproduce` is the door."""

from zeitgeist.studies.reproduction import find_study, reproduce

__all__ = ["find_study", "reproduce"]
