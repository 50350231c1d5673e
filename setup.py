"""Build hook: ships presets and the caption list inside the package; all other settings are in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """`build_py` that adds the presets and captions, where `config_folder` and `captions_file` look for them."""

    def run(self):
        """Copies the packages, then the rest."""
        super().run()
        if not self.editable_mode:
            source, target = Path(__file__).parent, Path(self.build_lib) / "jaxvid"
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(
                source / "configs", target / "configs", ignore=ignored, dirs_exist_ok=True
            )
            (target / "assets").mkdir(exist_ok=True)
            shutil.copy(source / "benchmarks" / "captions.json", target / "assets")


setup(cmdclass={"build_py": BuildWithData})
