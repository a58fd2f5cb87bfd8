"""What pyproject.toml cannot say: conf/ travels in the package, as trainer/conf, and pages beside the code that fills them."""

from setuptools import find_namespace_packages, find_packages, setup

CONF = ["trainer.conf", *(f"trainer.conf.{group}" for group in find_namespace_packages("conf"))]

setup(
    packages=find_packages(include=["model", "model.*", "trainer", "trainer.*"]) + CONF,
    package_dir={"trainer.conf": "conf"},
    package_data={"": ["*.yaml"], "trainer.report.html": ["page.*"], "trainer.explore": ["page.*"]},
)
