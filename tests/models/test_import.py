"""What `import visionattn` does and does not do."""

import json
import subprocess
import sys

SCRIPT = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise OSError("no network at import")
socket.socket.connect = refuse
import timm
before = set(timm.list_models()), set(timm.list_pretrained())
import visionattn
after = set(timm.list_models()), set(timm.list_pretrained())
print(json.dumps({
    "new": sorted(after[0] - before[0]),
    "lost": sorted(before[0] - after[0]) + sorted(before[1] - after[1]),
    "heavy": sorted({"triton", "accelerate", "jsonargparse", "matplotlib", "torchmetrics"} & set(sys.modules) - heavy),
    "version": visionattn.__version__,
}))
"""


def test_import_registers_the_models_fetches_nothing_and_loads_no_tool():
    # what torch and timm load by themselves is theirs
    script = SCRIPT.replace("import visionattn\n", "heavy = set(sys.modules)\nimport visionattn\n", 1)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert {"gna_nano", "gna_base", "nat_tiny", "dinat_s_tiny", "inline_deit_tiny"} <= set(said["new"])
    assert said["lost"] == [], "a name that timm owns was registered again"
    assert said["heavy"] == []
    assert said["version"]
    assert done.stderr == ""
