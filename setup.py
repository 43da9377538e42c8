"""The folders that users copy and edit, cluster/ and tune/, travel in the wheel as m3dist/examples/{cluster,tune}."""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = [name for name in ("cluster", "tune") if Path(name).is_dir()]

setup(
    packages=[*find_packages(include=["m3dist*"]), *(f"m3dist.examples.{name}" for name in FOLDERS)],
    package_dir={f"m3dist.examples.{name}": name for name in FOLDERS},
    package_data={"m3dist": ["py.typed"], "m3dist.examples": ["*.yaml"], "m3dist.report": ["*.html"]}
    | {f"m3dist.examples.{name}": ["*"] for name in FOLDERS},
)
