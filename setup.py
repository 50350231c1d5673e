"""Build hook: ships the top-level `configs/` as `jaxvid/configs/`; all other settings are in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """`build_py` that adds the presets, where `jaxvid.core.config.config_folder` looks for them."""

    def run(self):
        """Copies the packages, then the presets."""
        super().run()
        if not self.editable_mode:
            source, target = Path(__file__).parent / "configs", Path(self.build_lib) / "jaxvid"
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / "configs", ignore=ignored, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
