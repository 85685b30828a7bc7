"The installer: everything it says is read from settings.ini, nbdev's live configuration."
from configparser import ConfigParser

import setuptools

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
c = config["DEFAULT"]
extras = {name: c[f"{name}_requirements"].split() for name in ("rl", "scale", "live", "ibkr", "options", "dev")}
extras["all"] = sorted({req for reqs in extras.values() for req in reqs})

setuptools.setup(
    name=c["lib_name"], version=c["version"], description=c["description"], license="Apache-2.0",
    long_description=open("README.md", encoding="utf-8").read(), long_description_content_type="text/markdown",
    author=c["author"], author_email=c["author_email"], url=c["git_url"], keywords=c["keywords"],
    packages=setuptools.find_packages(include=[c["lib_path"], c["lib_path"] + ".*"]),
    package_data={c["lib_path"]: ["py.typed"]},
    install_requires=c["requirements"].split(), extras_require=extras,
    python_requires=">=" + c["min_python"],
    entry_points={"console_scripts": c["console_scripts"].split(),
                  "nbdev": [f"{c['lib_path']}={c['lib_path']}._modidx:d"]},
    zip_safe=False)
