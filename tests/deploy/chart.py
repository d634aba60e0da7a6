"""Renders the chart with helm's own engine and checks what comes out: `chart.py CHART DURAHUB`.

Every set of values is rendered, validated against the schemas of two versions of Kubernetes, and held against what
the chart promises. Every file of settings in it is judged by the program itself.
"""

import copy
import pathlib
import subprocess
import sys
import tempfile

import helm_python
import kubernetes_validate
import yaml

# The first one that knows everything in the chart, and the newest one that the package has.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
# Kinds that Kubernetes itself does not have; `custom` holds them against what their own schemas demand.
CUSTOM = {"GRPCRoute", "ServiceMonitor", "PrometheusRule"}
# Maps whose keys are the user's.
OPEN = {
    "nodeSelector", "podAnnotations", "podLabels", "service.annotations", "ingress.annotations",
    "grpcRoute.annotations", "serviceAccount.annotations", "serviceMonitor.labels", "prometheusRule.labels",
    "dashboard.labels", "resources.requests", "resources.limits", "global",
    "affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity",
}  # fmt: skip

folder, binary = pathlib.Path(sys.argv[1]), sys.argv[2]
chart = helm_python.Chart.load(folder)


def from_file(name):
    return yaml.safe_load((folder / f"values-{name}.yaml").read_text())


ROUTES = {
    "ingress": {"enabled": True, "className": "nginx", "hosts": ["dts.example.com"], "tlsSecret": "cert"},
    "grpcRoute": {
        "enabled": True,
        "hostnames": ["dts.example.com"],
        "parentRefs": [{"name": "edge", "namespace": "gateways", "sectionName": "https"}],
    },
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}, "grpcPort": 80, "httpPort": 81},
}
CUSTOMISED = {
    "fullnameOverride": "engine",
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": ["registry"],
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "db", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "x"},
    "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
    "runAsUser": None,
    "fsGroup": None,
    "persistence": {"storageClass": "ssd", "whenDeleted": "Delete"},
    "podDisruptionBudget": {"enabled": False},
    "serviceAccount": {"create": False, "name": "mine"},
    "config": {"task_hubs": ["orders", "billing"], "limits": {"max_payload_bytes": "2MiB"}},
}
EVERY_SECRET = from_file("secured") | {
    "tls": {"existingSecret": "tls", "clientCA": True},
    "auth": {
        "tokens": {"secret": "tokens"},
        "grants": {"secret": "grants"},
        "jwks": {"secret": "jwks"},
        "jwksCA": {"secret": "jwks-ca"},
    },
    "config": {"auth": {"mode": "token,jwt,certificate", "jwt": {"issuer": "i", "audience": ["a"]}}},
}
OWN_NAME = {"peerTls": {"existingSecret": "peers"}, "config": {"peer_tls": {"name": "nodes.example"}}}
NO_NAME = {"peerTls": {"existingSecret": "peers"}, "config": {"peer_tls": {"name": ""}}}
SETS = {
    "default": {},
    "single": from_file("single"),
    "three": from_file("three"),
    "secured": from_file("secured"),
    "routes": ROUTES,
    "customised": CUSTOMISED,
    "every secret": EVERY_SECRET,
    "peers by a name of their own": OWN_NAME,
    "peers by their hosts": NO_NAME,
    "grown": {"replicas": 5},
    "shrunk": {"replicas": 3, "cluster": {"initialReplicas": 5, "scaledIn": True}},
    "a lost volume": {"cluster": {"rejoin": [1]}},
    "in memory": from_file("single") | {"persistence": {"enabled": False}},
}


def render(values, **options):
    options = {"name": "durahub", "namespace": "work"} | options
    texts = chart.render(values=values, **options)
    notes = next(text for path, text in texts.items() if path.endswith("NOTES.txt"))
    objects = []
    for path, text in texts.items():
        assert "<no value>" not in text and "%!" not in text, f"{path}: {text}"
        if not path.endswith("NOTES.txt"):
            objects += [o for o in yaml.safe_load_all(text) if o]
    return objects, notes


def of(objects, kind, name=None):
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) <= 1 or name is None, f"two {kind} {name}"
    return found


def one(objects, kind, name=None):
    found = of(objects, kind, name)
    assert len(found) == 1, f"{len(found)} {kind} {name}"
    return found[0]


def merged(values):
    return chart.merge_values(values)


def valid(objects):
    for item, version in ((o, v) for o in objects for v in VERSIONS):
        if item["kind"] in CUSTOM:
            continue
        where = f"{item['kind']} {item['metadata']['name']} for {version}"
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{where}: {error.message} at {list(error.path)}") from error
        except kubernetes_validate.SchemaNotFoundError as error:
            raise AssertionError(f"{where}: no such kind") from error


def custom(objects, values):
    """What the schemas of the Gateway API and of the Prometheus operator demand of what we use."""
    for route in of(objects, "GRPCRoute"):
        assert set(route["spec"]) <= {"parentRefs", "hostnames", "rules"}
        service = one(objects, "Service", route["metadata"]["name"])
        for back in (back for rule in route["spec"]["rules"] for back in rule["backendRefs"]):
            assert back["name"] == service["metadata"]["name"]
            assert back["port"] in [port["port"] for port in service["spec"]["ports"]]
    for monitor in of(objects, "ServiceMonitor"):
        services = [s for s in of(objects, "Service") if within(monitor["spec"]["selector"], s["metadata"]["labels"])]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert set(endpoint) <= {"port", "path", "interval", "scheme", "tlsConfig", "authorization"}
        ports = [port["name"] for service in services for port in service["spec"]["ports"]]
        assert ports.count(endpoint["port"]) == 1, "each node is scraped once"
        assert (endpoint.get("scheme") == "https") == bool(values["tls"]["existingSecret"])
    for rules in of(objects, "PrometheusRule"):
        for group in rules["spec"]["groups"]:
            assert set(group) <= {"name", "interval", "rules"} and group["rules"]
            for rule in group["rules"]:
                assert set(rule) <= {"alert", "record", "expr", "for", "labels", "annotations"}


def within(selector, labels):
    return set(selector["matchLabels"].items()) <= set(labels.items())


def pods(objects):
    """Every pod of the chart as (name, labels, spec)."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item["metadata"]["labels"], item["spec"]
        elif item["kind"] in ("StatefulSet", "Job"):
            template = item["spec"]["template"]
            yield item["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def promises(objects, notes, values):
    replicas = values["replicas"]
    server = one(objects, "StatefulSet")
    name, spec = server["metadata"]["name"], server["spec"]
    template = spec["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    (container,) = pod["containers"]
    assert (spec["podManagementPolicy"], spec["replicas"]) == ("Parallel", replicas)
    assert within(spec["selector"], labels)

    # Stable names before readiness; clients only where a node takes work; no other pod of the chart is taken for one.
    peers = one(objects, "Service", f"{name}-peers")["spec"]
    clients = one(objects, "Service", name)["spec"]
    assert peers["clusterIP"] == "None" and peers["publishNotReadyAddresses"] is True
    assert spec["serviceName"] == f"{name}-peers" and "publishNotReadyAddresses" not in clients
    selectors = [peers["selector"], clients["selector"], spec["selector"]["matchLabels"]]
    selectors += [p["spec"]["selector"]["matchLabels"] for p in of(objects, "PodDisruptionBudget")]
    for pod_name, pod_labels, _ in pods(objects):
        for selector in selectors:
            assert within({"matchLabels": selector}, pod_labels) == (pod_name == name), (pod_name, selector)
    named = {port["name"] for port in container["ports"]}
    for service in (peers, clients):
        assert {port["targetPort"] for port in service["ports"]} <= named
    assert bool(of(objects, "PodDisruptionBudget")) == values["podDisruptionBudget"]["enabled"]

    # Probes: life never asks for a quorum. They speak TLS where the port does.
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert [probes[kind]["path"] for kind in probes] == ["/livez", "/livez", "/readyz"]
    scheme = "HTTPS" if values["tls"]["existingSecret"] else "HTTP"
    assert all(probe["scheme"] == scheme and probe["port"] in named for probe in probes.values())

    # The drain has the time that it may take: hand-over of leaders, running work, and some to close.
    grace, drain = pod["terminationGracePeriodSeconds"], values["drainSeconds"]
    assert grace >= values["preStopSeconds"] + 5 + drain + 10
    if values["preStopSeconds"]:
        assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": values["preStopSeconds"]}}

    if values["persistence"]["enabled"]:
        (claim,) = spec["volumeClaimTemplates"]
        assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
        retention = spec["persistentVolumeClaimRetentionPolicy"]
        assert retention == {key: values["persistence"][key] for key in ("whenDeleted", "whenScaled")}
        assert claim["spec"]["resources"]["requests"]["storage"] == values["persistence"]["size"]
    anti = pod.get("affinity", {}).get("podAntiAffinity", {})
    wanted = {"hard": {"requiredDuringSchedulingIgnoredDuringExecution"}, "none": set()}
    wanted["soft"] = {"preferredDuringSchedulingIgnoredDuringExecution"}
    assert set(anti) == (set() if values["affinity"] else wanted[values["antiAffinity"]])
    for pod_name, _, each in pods(objects):
        restricted(pod_name, each)
        mounts_exist(pod_name, each, claims={"data"} if pod_name == name else set())

    test = one(objects, "Pod")
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    endpoint = next(a for a in test["spec"]["containers"][0]["args"] if a.startswith("--endpoint="))
    address = endpoint.removeprefix("--endpoint=")
    lines = [line.strip() for line in notes.splitlines()]
    closed = values["config"].get("auth", {}).get("mode", "none") != "none"
    connection = f"Endpoint={address};TaskHub={values['config']['task_hubs'][0]}"
    assert connection + ("" if closed else ";Authentication=None") in lines, notes
    assert ("WARNING: connections are not encrypted" in notes) == (not values["tls"]["existingSecret"]), notes
    assert address.endswith(f"://{name}.work.svc.cluster.local:{values['service']['grpcPort']}")
    assert address.startswith("https:" if values["tls"]["existingSecret"] else "http:")

    policies = of(objects, "NetworkPolicy")
    assert bool(policies) == values["networkPolicy"]["enabled"]
    for policy in policies:
        to_peer = [rule for rule in policy["spec"]["ingress"] if {"port": "peer"} in rule["ports"]]
        (rule,) = to_peer
        (who,) = rule["from"]
        assert all(within(who["podSelector"], pod_labels) for _, pod_labels, _ in pods(objects))
    return container


def restricted(name, pod):
    """The restricted profile of the pod security standards."""
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True and security["seccompProfile"]["type"] == "RuntimeDefault", name
    assert security.get("runAsUser") != 0 and pod["automountServiceAccountToken"] is False, name
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, name
        assert own["capabilities"] == {"drop": ["ALL"]} and container["resources"]["limits"], name
    for volume in pod.get("volumes", []):
        assert set(volume) - {"name"} <= {"configMap", "emptyDir", "secret", "projected"}, volume


def mounts_exist(name, pod, claims):
    volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims
    mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
    assert mounts <= volumes, (name, mounts - volumes)
    assert volumes - claims <= mounts, (name, volumes - mounts)


def settings(objects, container, values):
    """Each pod finds a file of settings that the program takes; together they make one cluster."""
    name = one(objects, "StatefulSet")["metadata"]["name"]
    files = one(objects, "ConfigMap", name)["data"]
    assert set(files) == {f"{name}-{ordinal}.toml" for ordinal in range(values["replicas"])}
    assert container["args"] == ["serve", "--config", "/etc/durahub/config/$(POD_NAME).toml"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    effective = []
    for ordinal in range(values["replicas"]):
        text = files[f"{name}-{ordinal}.toml"]
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(text)
            file.flush()
            judged = subprocess.run([binary, "config", "check", "--without-files", "--config", file.name], capture_output=True, text=True)
        assert judged.returncode == 0, f"{judged.stderr}\n{text}"
        effective.append(read_toml(judged.stdout))
        # Whatever file the settings name is mounted.
        for line in judged.stdout.splitlines():
            if not line.startswith("#") and "_file = " in line and "/etc/" in line:
                path = line.split('"')[1]
                assert path.rsplit("/", 1)[0] in mounts, path
    initial, rejoin = values["cluster"]["initialReplicas"], values["cluster"]["rejoin"]
    addresses = [f"{name}-{o}.{name}-peers.work.svc.cluster.local:8083" for o in range(99)]
    members = [f"{o + 1}={addresses[o]}" for o in range(initial)] if initial > 1 else []
    for ordinal, node in enumerate(effective):
        joins = ordinal >= initial or ordinal in rejoin
        others = [addresses[o] for o in range(values["replicas"]) if o != ordinal]
        assert node["advertise_peer"] == addresses[ordinal]
        assert node["node_id"] == ("auto" if joins else ordinal + 1)
        assert node["initial_cluster"] == ([] if joins else members)
        assert node["join"] == (others if joins else [])
        # Not just any certificate of the CA makes a node, unless that is what was asked for.
        secured = values["peerTls"]["existingSecret"]
        usual = f"{name}-peers.work.svc.cluster.local" if secured else ""
        assert node["peer_tls.name"] == values["config"].get("peer_tls", {}).get("name", usual)
        assert bool(node["peer_tls.ca_file"]) == bool(secured)
        assert node["limits.drain_timeout"] == f"{values['drainSeconds']}s"
        assert all(node[key].endswith(port) for key, port in PORTS.items())
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8080, "http": 8082, "peer": 8083}
    guards = of(objects, "Job")
    assert bool(guards) == values["scaleInGuard"]["enabled"]
    for guard in guards:
        args = guard["spec"]["template"]["spec"]["containers"][0]["args"]
        assert args[-1].split(",") == addresses[: values["replicas"]]


PORTS = {"grpc_addr": "0.0.0.0:8080", "http_addr": "0.0.0.0:8082", "peer_addr": "0.0.0.0:8083"}


def read_toml(text):
    """The reference format: one line per key, values that YAML reads as well."""
    values, table = {}, ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif line and not line.startswith("#"):
            key, value = line.split(" = ", 1)
            values[table + key] = yaml.safe_load(value)
    return values


def command_lines(objects):
    """The program takes every command line that the chart gives to it, and reads every variable."""
    for name, _, pod in pods(objects):
        (container,) = pod["containers"]
        # It stops at the first word that it does not know, and else answers with the help of the command.
        told = subprocess.run([binary, *container["args"], "--help"], capture_output=True, text=True)
        assert told.returncode == 0, f"{name}: {told.stderr}"
        for variable in container.get("env", []):
            if variable["name"].startswith("DURAHUB_"):
                assert f"{variable['name']}" in told.stdout, f"{name}: {variable}\n{told.stdout}"


def refused(values, *parts, **options):
    try:
        render(values, **options)
    except helm_python.HelmError as error:
        assert all(part in str(error) for part in parts), f"{values}: {error}"
        return
    raise AssertionError(f"taken: {values}")


def schema():
    """A typo is refused wherever it stands; so are values that cannot be meant."""
    count = 0

    def walk(values, path):
        nonlocal count
        if ".".join(path) in OPEN:
            return
        typo = {"enabeld": True}
        for part in reversed(path):
            typo = {part: typo}
        refused(typo, "enabeld")
        count += 1
        for key, inner in values["properties"].items():
            if inner.get("type") == "object":
                walk(inner, [*path, key])

    root = chart.schema
    walk(root, [])
    assert count > 30, count
    open_maps(root, [])
    for wrong in [
        {"replicas": 0},
        {"replicas": "3"},
        {"cluster": {"initialReplicas": 2}},
        {"config": {"data_dir": "/x"}},
        {"config": {"limits": {"drain_timeout": "1h"}}},
        {"config": {"partitions": 3}},
        {"antiAffinity": "yes"},
        {"image": {"digest": "latest"}},
        {"tolerations": [{"kee": "x"}]},
        {"extraEnv": [{"nam": "x"}]},
        {"networkPolicy": {"clients": [{"podSelektor": {}}]}},
        {"grpcRoute": {"parentRefs": [{"nam": "x"}]}},
        {"persistence": {"whenScaled": "Keep"}},
        {"runAsUser": 0},
    ]:
        refused(wrong, "values don't meet the specifications of the schema")


def open_maps(schema, path):
    """Only the listed maps, and lists of texts, take keys that the schema does not name."""
    kind = schema.get("type")
    if kind == "object" and ".".join(path) not in OPEN and path[-1:] not in (["matchLabels"],):
        assert schema.get("additionalProperties") is False, path
    for key, inner in schema.get("properties", {}).items():
        open_maps(inner, [*path, key])
    if kind == "array":
        open_maps(schema["items"], [*path, "items"])


def guards():
    refused({"replicas": 1}, "cluster.initialReplicas", "remove-node")
    refused({"persistence": {"enabled": False}}, "persistence.enabled=false is for a single node")
    refused(from_file("single") | {"cluster": {"initialReplicas": 1, "rejoin": [0]}}, "nothing that it could join")
    refused({"grpcRoute": {"enabled": True}}, "grpcRoute.parentRefs")
    refused({"ingress": {"enabled": True}}, "ingress.hosts")
    refused({"tls": {"clientCA": True}}, "tls.clientCA needs")
    # A node more changes nothing that would restart the others.
    sums = [
        one(render(values)[0], "StatefulSet")["spec"]["template"] for values in ({}, {"replicas": 5}, {"drainSeconds": 30})
    ]
    assert sums[0] == sums[1] and sums[0] != sums[2]


def names():
    """Long names stay within 63 characters, and pods stay tied to their files."""
    objects, _ = render({}, name="a-release-with-quite-a-long-name-that-goes-on-and-on")
    longest = max(len(o["metadata"]["name"]) for o in objects)
    assert longest <= 55, longest


def version():
    """The chart names the program that it was checked with."""
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert chart.metadata["appVersion"] == told, (chart.metadata["appVersion"], told)


def main():
    version()
    for label, values in SETS.items():
        try:
            report = helm_python.lint(folder, copy.deepcopy(values), strict=True)
            bad = [message for message in report["messages"] if message["severity"] > 1]
            assert not bad and not report["errors"], (bad, report["errors"])
            objects, notes = render(values)
            valid(objects)
            complete = merged(values)
            custom(objects, complete)
            container = promises(objects, notes, complete)
            settings(objects, container, complete)
            command_lines(objects)
        except AssertionError:
            print(f"with the values {label!r}:")
            raise
    schema()
    guards()
    names()
    print(f"{len(SETS)} sets of values for Kubernetes {' and '.join(VERSIONS)}: ok")


main()
