"""Reads the compose file: `compose.py FILE DURAHUB`. The program must take what each of its nodes is told."""

import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

path, binary = pathlib.Path(sys.argv[1]), sys.argv[2]
services = yaml.safe_load(path.read_text())["services"]
dockerfile = (path.parent / "Dockerfile").read_text()
image = dict(re.findall(r"(DURAHUB_\w+)=(\S+)", dockerfile))
assert image, "the Dockerfile sets addresses"

members, ports = [], []
for name, service in services.items():
    variables = image | {key: str(value) for key, value in service["environment"].items()}
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run(
            [binary, "config", "check", "--without-files"], env=variables, cwd=folder, capture_output=True, text=True, check=False
        )
    assert told.returncode == 0, told.stderr
    members.append(re.search(r"^initial_cluster = (.*)$", told.stdout, re.M)[1])
    # A variable that the program does not know would be ignored in silence.
    for variable in variables:
        if variable.startswith("DURAHUB_"):
            assert f"{variable}\n" in told.stdout, f"{name}: there is no setting {variable}"
    own = f"{variables['DURAHUB_NODE_ID']}={name}:8083"
    assert own in members[-1], f"{name}: {own} is not in {members[-1]}"
    ports += [port.rsplit(":", 1)[0] for port in service["ports"]]
    assert service["read_only"] and service["cap_drop"] == ["ALL"], name
    assert service["volumes"] == [f"{name}:/data"] and image["DURAHUB_DATA_DIR"].startswith("/data/"), name
    subprocess.run([binary, *service["healthcheck"]["test"][2:], "--help"], check=True, capture_output=True)
assert len(set(members)) == 1 and members[0].count("=") == len(services) == 3
assert len(set(ports)) == len(ports) and all(port.startswith("127.0.0.1:") for port in ports)
print("compose: ok")
