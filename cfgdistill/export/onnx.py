"""A finished student as ONNX, for runtimes without Python: a browser, a phone, a microcontroller.

student.onnx   z [b, c, h, w], t [b], cond [b] (labels) or [b, n] (tokens), w [b] -> v [b, c, h, w]
decoder.onnx   latents z [b, c, h, w] -> images x [b, 3, H, W], where the student draws latents
student.json   what is needed beside them: the times of the sampler and the schedule there, the
               range of w, the names of the classes or the tokenizer

From z ~ N(0, I) at t[0], each step asks for v once and goes from t[i] to t[i + 1]:

    x = alpha[i] z - sigma[i] v,  eps = sigma[i] z + alpha[i] v,  z = alpha[i+1] x + sigma[i+1] eps
"""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser, ranges
from cfgdistill.core.schedules import weights
from cfgdistill.data.meaning import Classes, Prompts
from cfgdistill.data.text import described
from cfgdistill.export.stock import MADE_WITH, check_student, put
from cfgdistill.teachers.drawing import STEPS

CLOSE = 1e-4  # of what ONNX and PyTorch answer


def export_onnx(student: Denoiser, folder: str | Path) -> Path:
    """Write `student` as ONNX with all that sampling needs beside it; the folder's path.

    Batches may have any size. The embedding of w and a text model of the student's own are inside;
    weights that half precision holds exactly are stored so. What was written is run and compared
    with PyTorch before it is kept. ValueError, with one sentence, for a model that cannot be
    exported so; OSError as for `stock.export`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"ONNX needs {error.name}, which is not installed: pip install 'cfgdistill[onnx]'."
        ) from error
    check_student(student)
    if student.prediction_type != "v" or student.takes_s:
        raise ValueError(
            "Only a network that predicts v from z, t, a condition and w can be written as ONNX: "
            "export another student."
        )
    meaning = student.meaning
    if isinstance(meaning, Classes):
        cond = meaning.conditions([0, meaning.num_classes - 1])
    elif isinstance(meaning, Prompts) and not meaning.embedded:
        cond = meaning.conditions(["a", ""])
    else:
        raise ValueError(
            "Only students of classes, or of captions that they read with a text model of their "
            "own, can be written as ONNX: export this one for stock diffusers, without --onnx."
        )

    def write(made: Path) -> None:
        net = copy.deepcopy(student.net).cpu().eval()
        z, t = torch.randn(2, *student.shape, device="cpu"), torch.tensor([1.0, 0.25])
        w = weights(tuple(low for low, _ in ranges(student.w_range)), z, t)
        given = {"z": z, "t": t, "cond": cond, "w": w}
        _write(net, given, "v", made / "student.onnx")
        if meaning.vae is not None:
            decoder = _Decoder(copy.deepcopy(meaning.vae).cpu().eval())
            _write(decoder, {"z": z}, "x", made / "decoder.onnx")
        text = json.dumps(_said(student), ensure_ascii=False, separators=(",", ":"))
        (made / "student.json").write_text(text, encoding="utf-8")

    return put(write, folder, marked="student.json")


def _said(student: Denoiser) -> dict:
    """student.json. A student of any number of steps may take every k-th of these times."""
    n = student.steps or STEPS
    t = torch.arange(n, -1, -1, dtype=torch.float64) / n
    alpha, sigma = student.schedule.alpha_sigma(t)
    said = {
        "made_with": MADE_WITH,
        "shape": list(student.shape),
        "prediction_type": student.prediction_type,
        "steps": student.steps,
        "t": t.tolist(),
        "alpha": alpha.tolist(),
        "sigma": sigma.tolist(),
        "w_range": student.w_range,
    }
    if isinstance(student.meaning, Classes):
        names = student.meaning.names or map(str, range(student.meaning.num_classes))
        return {**said, "class_names": list(names)}
    tokenizer = student.meaning.text.tokenizer
    marks = {"begin": tokenizer.bos_token_id, "end": tokenizer.eos_token_id}
    about = {**described(tokenizer), "length": student.meaning.text.length}
    return {**said, "tokenizer": {**about, **marks, "padding": tokenizer.pad_token_id}}


class _Decoder(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


def _write(net: nn.Module, given: dict[str, Tensor], answer: str, file: Path) -> None:
    """One network as one file; ValueError where it says anything else there."""
    import onnx

    batch = {name: {0: "batch"} for name in (*given, answer)}
    names = {"input_names": list(given), "output_names": [answer], "dynamic_axes": batch}
    try:
        # By tracing: torch.export, which dynamo=True stands on, takes a hundred times as long for
        # the text students and cannot read `pixel_unshuffle`d ones (torch 2.13).
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of branches that depend on shapes alone
            torch.onnx.export(net, tuple(given.values()), str(file), dynamo=False, **names)
        model = onnx.load(file)
        _halve(model.graph)
        onnx.save(model, file)
        error = _error(net, given, file)
    except Exception as error:  # of tracing, of ONNX and of its runtime, each with kinds of its own
        why = " ".join(f"{error!s:.120}".split())
        raise ValueError(
            f"A {type(net).__name__} cannot be written as ONNX ({why}): export this student for "
            "stock diffusers, without --onnx."
        ) from error
    if not error < CLOSE:
        raise ValueError(
            f"As ONNX this {type(net).__name__} answers differently by {error:.2g}, more than "
            f"{CLOSE:g}: export this student for stock diffusers, without --onnx."
        )


def _halve(graph) -> None:
    """Keep in half precision what loses nothing by it, and let the file widen it when loaded."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        whole = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = whole.astype(np.float16)
        if whole.dtype == np.float32 and np.array_equal(half, whole):
            stored = f"{tensor.name}.half"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(half, stored))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _error(net: nn.Module, given: dict[str, Tensor], file: Path) -> float:
    """The largest difference of an answer, for a batch of another size than was traced."""
    from onnxruntime import InferenceSession

    three = {name: torch.cat([part, part[:1]]) for name, part in given.items()}
    with torch.no_grad():
        known = net(*three.values())
    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: part.numpy() for name, part in three.items()})
    return (torch.from_numpy(found) - known).abs().max().item()
