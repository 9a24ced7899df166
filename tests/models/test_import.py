"""What `import visionattn` does and does not do."""

import json
import subprocess
import sys

SCRIPT = """
import json, socket, sys, time
def refuse(*args, **kwargs):
    raise OSError("no network at import")
socket.socket.connect = refuse
start = time.process_time()
import timm
timms = time.process_time() - start
before = set(timm.list_models()), set(timm.list_pretrained())
start = time.process_time()
import visionattn
ours = time.process_time() - start
after = set(timm.list_models()), set(timm.list_pretrained())
print(json.dumps({
    "new": sorted(after[0] - before[0]),
    "lost": sorted(before[0] - after[0]) + sorted(before[1] - after[1]),
    "heavy": sorted({"triton", "accelerate", "jsonargparse", "matplotlib", "torchmetrics"} & set(sys.modules) - heavy),
    "version": visionattn.__version__,
    "share": ours / timms,
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
    assert said["share"] < 0.5, "importing visionattn takes over one and a half times as long as importing timm"
    assert done.stderr == ""
