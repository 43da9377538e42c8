"""The folders that users copy and edit, cluster/ and tune/, and the pages of docs/ travel in the wheel as
m3dist/examples/{cluster,tune,docs}.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = {"cluster": ["*"], "tune": ["*"], "docs": ["*.md"]}
FOLDERS = {name: files for name, files in FOLDERS.items() if Path(name).is_dir()}


class Build(build_py):
    """Leaves the scripts beside the pages out."""

    def find_package_modules(self, package, package_dir):
        return [] if package == "m3dist.examples.docs" else super().find_package_modules(package, package_dir)


setup(
    cmdclass={"build_py": Build},
    packages=[*find_packages(include=["m3dist*"]), *(f"m3dist.examples.{name}" for name in FOLDERS)],
    package_dir={f"m3dist.examples.{name}": name for name in FOLDERS},
    package_data={"m3dist": ["py.typed"], "m3dist.examples": ["*.yaml"], "m3dist.report": ["*.html"]}
    | {f"m3dist.examples.{name}": files for name, files in FOLDERS.items()},
)
