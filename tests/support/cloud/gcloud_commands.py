"""The commands of gcloud that the stand-in knows, with their flags as the reference lists them (SDK of 2026).

https://cloud.google.com/sdk/gcloud/reference; alpha commands keep their prefix.
"""

from __future__ import annotations

from tests.support.cloud.flags import Spec

_TPU_TYPES = ("v2", "v3", "v4", "v5litepod", "v5p", "v6e")
_VM = (
    "zone description accelerator-type topology type data-disk boot-disk labels metadata metadata-from-file network "
    "subnetwork range scopes service-account tags"
)
_NODE = "async internal-ips reserved shielded-secure-boot spot"
_SSH = "zone worker command batch-size output-directory ssh-key-file ssh-key-expiration ssh-key-expire-after ssh-flag"
_SSH_SWITCHES = "dry-run force-key-file-overwrite plain strict-host-key-checking tunnel-through-iap internal-ip"
_MACHINES = ("accelerator-type topology", "accelerator-type type")
_SPOT = ("spot reserved preemptible", "spot guaranteed reserved")
_GCE_SSH = "zone command container ssh-flag ssh-key-expiration ssh-key-expire-after ssh-key-file"
_GCE_SSH_SWITCHES = "dry-run force-key-file-overwrite internal-ip plain tunnel-through-iap troubleshoot"
_RESERVATION = "reservation-host-folder reservation-host-organization reservation-host-project"
_VALID = "valid-after-duration valid-after-time valid-until-duration valid-until-time"
_ALPHA_SWITCHES = "autocheckpoint-enabled"

_TPUS = {
    "tpu-vm.create": Spec(
        "TPU",
        values=f"{_VM} version queue-count",
        switches=f"{_NODE} preemptible",
        required="version",
        choices={"type": _TPU_TYPES},
        exclusive=_MACHINES + _SPOT,
    ),
    "tpu-vm.delete": Spec("TPU", values="zone", switches="async"),
    "tpu-vm.describe": Spec("TPU", values="zone"),
    "tpu-vm.list": Spec(values="zone"),
    "tpu-vm.start": Spec("TPU", values="zone", switches="async"),
    "tpu-vm.stop": Spec("TPU", values="zone", switches="async"),
    "tpu-vm.ssh": Spec("TPU", values=_SSH, switches=_SSH_SWITCHES, remainder=True),
    "tpu-vm.scp": Spec("PATH", many=True, values=_SSH, switches=f"{_SSH_SWITCHES} recurse compress"),
    "tpu-vm.accelerator-types.list": Spec(values="zone"),
    "tpu-vm.versions.list": Spec(values="zone"),
    "locations.list": Spec(),
    "queued-resources.create": Spec(
        "QUEUED_RESOURCE",
        values=f"{_VM} runtime-version node-id node-count node-prefix {_VALID} {_RESERVATION}",
        switches=f"{_NODE} guaranteed",
        required="runtime-version",
        choices={"type": _TPU_TYPES},
        exclusive=(*_MACHINES, *_SPOT, "node-id node-count"),
    ),
    "queued-resources.delete": Spec("QUEUED_RESOURCE", values="zone", switches="async force"),
    "queued-resources.describe": Spec("QUEUED_RESOURCE", values="zone"),
    "queued-resources.list": Spec(values="zone"),
    "queued-resources.reset": Spec("QUEUED_RESOURCE", values="zone", switches="async"),
    "queued-resources.ssh": Spec("QUEUED_RESOURCE", values=f"{_SSH} node", switches=_SSH_SWITCHES, remainder=True),
    "queued-resources.scp": Spec(
        "PATH", many=True, values=f"{_SSH} node", switches=f"{_SSH_SWITCHES} recurse compress"
    ),
}

_TEMPLATE = (
    "accelerator boot-disk-size boot-disk-type boot-disk-device-name boot-disk-interface create-disk description disk "
    "host-error-timeout-seconds image image-family image-project instance-template-region instance-termination-action "
    "labels local-ssd machine-type maintenance-policy max-run-duration metadata metadata-from-file min-cpu-platform "
    "network network-interface network-tier discard-local-ssds-at-termination-timestamp provisioning-model region "
    "reservation reservation-affinity scopes service-account subnet tags termination-time threads-per-core "
    "resource-policies"
)
_GROUP = (
    "zone region base-instance-name description health-check initial-delay instance-redistribution-type size template "
    "target-size-policy-mode default-action-on-vm-failure workload-policy stateful-disk target-pool "
    "list-managed-instances-results action-on-vm-failed-health-check"
)
_MODELS = ("SPOT", "STANDARD", "FLEX_START", "RESERVATION_BOUND")

_COMPUTE = {
    "resource-policies.create.workload-policy": Spec(
        "NAME",
        values="region description type accelerator-topology accelerator-topology-mode max-topology-distance",
        required="type",
        choices={
            "type": ("HIGH_AVAILABILITY", "HIGH_THROUGHPUT"),
            "accelerator-topology-mode": ("AUTO_CONNECT", "PROVISION_ONLY"),
        },
    ),
    "resource-policies.delete": Spec("NAME", many=True, values="region"),
    "resource-policies.describe": Spec("NAME", values="region"),
    "resource-policies.list": Spec(),
    "instance-templates.create": Spec(
        "NAME",
        values=_TEMPLATE,
        switches="address boot-disk-auto-delete can-ip-forward confidential-compute no-address no-scopes "
        "no-service-account preemptible restart-on-failure shielded-secure-boot",
        choices={
            "provisioning-model": _MODELS,
            "instance-termination-action": ("DELETE", "STOP"),
            "maintenance-policy": ("MIGRATE", "TERMINATE"),
            "reservation-affinity": ("any", "none", "specific"),
        },
    ),
    "instance-templates.delete": Spec("NAME", many=True, values="region"),
    "instance-templates.describe": Spec("NAME", values="region"),
    "instance-templates.list": Spec(values="regions"),
    "instance-groups.managed.create": Spec(
        "NAME",
        values=_GROUP,
        switches="force-update-on-repair",
        required="size template",
        choices={
            "target-size-policy-mode": ("bulk", "individual"),
            "default-action-on-vm-failure": ("do-nothing", "repair"),
        },
        exclusive=("zone region",),
    ),
    "instance-groups.managed.resize": Spec(
        "NAME", values="zone region size", switches="creation-retries", required="size"
    ),
    "instance-groups.managed.delete": Spec("NAME", many=True, values="zone region"),
    "instance-groups.managed.describe": Spec("NAME", values="zone region"),
    "instance-groups.managed.wait-until": Spec(
        "NAME", values="zone region timeout", switches="stable version-target-reached all-instances-config-effective"
    ),
    "instance-groups.managed.list": Spec(values="zones regions"),
    "instance-groups.managed.list-instances": Spec("NAME", values="zone region"),
    "instance-groups.managed.list-errors": Spec("NAME", values="zone region"),
    "instance-groups.managed.resize-requests.create": Spec(
        "MIG", values="zone resize-request resize-by requested-run-duration"
    ),
    "instance-groups.list-instances": Spec("NAME", values="zone region"),
    "instances.create": Spec("NAME", many=True, values=f"{_TEMPLATE} zone", choices={"provisioning-model": _MODELS}),
    "instances.bulk.create": Spec(
        values=f"{_TEMPLATE} zone region count name-pattern predefined-names",
        choices={"provisioning-model": ("SPOT", "STANDARD", "RESERVATION_BOUND")},
    ),
    "instances.delete": Spec("NAME", many=True, values="zone delete-disks keep-disks"),
    "instances.describe": Spec("NAME", values="zone"),
    "instances.list": Spec("NAME", many=True, values="zones"),
    "instances.stop": Spec("NAME", many=True, values="zone", switches="async"),
    "instances.start": Spec("NAME", many=True, values="zone", switches="async"),
    "ssh": Spec("[USER@]INSTANCE", values=_GCE_SSH, switches=_GCE_SSH_SWITCHES, remainder=True),
    "scp": Spec(
        "PATH", many=True, values=f"{_GCE_SSH} port scp-flag", switches=f"{_GCE_SSH_SWITCHES} recurse compress"
    ),
    "project-info.describe": Spec(),
    "regions.describe": Spec("NAME"),
    "zones.describe": Spec("NAME"),
    "reservations.describe": Spec("NAME", values="zone"),
}

_POOL = (
    "accelerator cluster disk-size disk-type image-type location location-policy machine-type max-nodes "
    "max-pods-per-node max-run-duration min-nodes metadata node-labels node-locations node-taints node-version "
    "num-nodes placement-policy placement-type reservation reservation-affinity scopes service-account tags "
    "tpu-topology total-max-nodes total-min-nodes workload-metadata zone region labels resource-manager-tags "
    "system-config-from-file"
)
_POOL_SWITCHES = (
    "async enable-autoprovisioning enable-autorepair enable-autoupgrade enable-autoscaling enable-gvnic flex-start "
    "enable-image-streaming enable-private-nodes enable-queued-provisioning preemptible shielded-secure-boot spot"
)
_CLUSTER = "cluster location zone region"

_CONTAINER = {
    "node-pools.create": Spec(
        "NAME",
        values=_POOL,
        switches=_POOL_SWITCHES,
        required="cluster",
        choices={
            "location-policy": ("ANY", "BALANCED"),
            "reservation-affinity": ("any", "none", "specific"),
            "workload-metadata": ("GCE_METADATA", "GKE_METADATA"),
        },
        exclusive=("spot preemptible flex-start", "location zone region"),
    ),
    "node-pools.delete": Spec("NAME", values=_CLUSTER, switches="async", required="cluster"),
    "node-pools.describe": Spec("NAME", values=_CLUSTER, required="cluster"),
    "node-pools.list": Spec(values=_CLUSTER, required="cluster"),
    "clusters.describe": Spec("NAME", values="location zone region"),
    "clusters.list": Spec(values="location zone region"),
    "clusters.get-credentials": Spec("NAME", values="location zone region", switches="dns-endpoint internal-ip"),
}

COMMANDS: dict[str, Spec] = {
    "version": Spec(),
    "info": Spec(),
    "auth.list": Spec(values="filter-account"),
    "auth.print-access-token": Spec("ACCOUNT"),
    "config.get-value": Spec("SECTION/PROPERTY"),
    "config.get": Spec("SECTION/PROPERTY"),
    "projects.describe": Spec("PROJECT_ID_OR_NUMBER"),
    "services.list": Spec(switches="available enabled"),
    "secrets.describe": Spec("SECRET", values="location"),
    "secrets.versions.access": Spec("VERSION", values="secret location out-file", required="secret"),
    "storage.cp": Spec("URL", many=True, switches="recursive no-clobber continue-on-error"),
    "storage.ls": Spec("URL", many=True, switches="recursive long json buckets"),
    "storage.cat": Spec("URL", many=True, values="range"),
    "storage.rm": Spec("URL", many=True, switches="recursive all-versions"),
    "storage.rsync": Spec(
        "URL", many=True, values="exclude", switches="recursive delete-unmatched-destination-objects"
    ),
    "storage.buckets.describe": Spec("URL", many=True),
    "logging.read": Spec("LOG_FILTER", values="freshness order"),
    **{f"compute.tpus.{name}": spec for name, spec in _TPUS.items()},
    **{f"compute.{name}": spec for name, spec in _COMPUTE.items()},
    **{f"container.{name}": spec for name, spec in _CONTAINER.items()},
}
_ALPHA_VALUES = "provisioning-model max-run-duration reservation workload-type"
for _name in ("tpu-vm.create", "queued-resources.create"):
    _spec = _TPUS[_name]
    COMMANDS[f"alpha.compute.tpus.{_name}"] = Spec(
        _spec.positional,
        values=f"{_spec.values} {_ALPHA_VALUES}",
        switches=f"{_spec.switches} {_ALPHA_SWITCHES} best-effort",
        required=_spec.required,
        choices={**_spec.choices, "provisioning-model": ("flex-start", "reservation-bound", "spot", "standard")},
        exclusive=_spec.exclusive,
    )
for _name, _spec in _TPUS.items():
    COMMANDS.setdefault(f"alpha.compute.tpus.{_name}", _spec)
    COMMANDS.setdefault(f"beta.compute.tpus.{_name}", _spec)
for _group, _commands in (("compute", _COMPUTE), ("container", _CONTAINER)):
    for _name, _spec in _commands.items():
        COMMANDS[f"beta.{_group}.{_name}"] = _spec
