"""The options of `jaxedit COMMAND ...`, with their help and examples."""

from pathlib import Path

from jaxvid.command import Add, count, finite

DESCRIPTION = "Reconstruct scenes as NeRFs or voxel grids, look at them, and edit them from text."


def demo(add: Add) -> None:
    """`jaxedit demo`."""
    sub = add(
        "demo",
        "Fit a toy scene, edit it by a sentence and four others, and show before and after: a film, pictures, figures.",
        "  jaxedit demo\n  jaxedit demo --out /tmp/demo      (then `jaxedit view /tmp/demo/run`)",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("jaxedit-demo"), help="a new folder (default jaxedit-demo)"
    )


def fit(add: Add) -> None:
    """`jaxedit fit`."""
    sub = add(
        "fit",
        "Fit a field to a scene's images, or go on with the run in the run directory; ends with its score on held-out views.",
        "  jaxedit fit scenes/mic --run runs/mic\n"
        "  jaxedit fit scenes/mic --config reconstruct/hash --run runs/mic_hash --data.size 200\n"
        "  jaxedit fit captures/garden --config my_fit.py --run runs/garden --loop.save-every 500\n"
        "  jaxedit fit scenes/mic --options      (every option that may follow)",
        overrides=True,
    )
    sub.add_argument(
        "scene", help="a folder: Blender, nerfstudio, instant-ngp, LLFF, COLMAP or Vox-E layout"
    )
    sub.add_argument(
        "--config",
        default="reconstruct/voxels",
        help="a preset, or a Python file with config() (default reconstruct/voxels)",
    )
    sub.add_argument(
        "--run", type=Path, dest="directory", help="run directory (default runs/SCENE)"
    )
    sub.add_argument("--options", action="store_true", help="list the configuration's options")


def train(add: Add) -> None:
    """`jaxedit train`."""
    sub = add(
        "train",
        "Train a small InstructPix2Pix on toy scenes, or go on with the run in the run directory.",
        "  jaxedit train instruct_pix2pix/toy --run runs/editor --save my_editor\n"
        "  jaxedit train instruct_pix2pix/toy --run runs/editor --editing.steps 60000      (goes on)\n"
        "  jaxedit train instruct_pix2pix/toy --options      (every option that may follow)",
        overrides=True,
    )
    sub.add_argument("config", help="a preset, or a Python file with config()")
    sub.add_argument("--run", type=Path, dest="directory", help="run directory (default runs/NAME)")
    sub.add_argument(
        "--init",
        type=Path,
        metavar="FOLDER",
        help="begin with a trained pipeline of these networks, such as the one that comes with jaxedit, which reads already",
    )
    sub.add_argument(
        "--save", type=Path, help="a new folder for the trained pipeline, in 16 bits, at the end"
    )
    sub.add_argument("--options", action="store_true", help="list the configuration's options")


def edit(add: Add) -> None:
    """`jaxedit edit`."""
    sub = add(
        "edit",
        "Edit a fitted scene by a sentence, or go on with an edit that was interrupted; the scene before it is kept.",
        '  jaxedit edit runs/snowman --instruction "make the hat red"\n'
        '  jaxedit edit runs/snowman --instruction "make it night" --dry-run       (four views in 2-D, nothing else)\n'
        "  jaxedit edit runs/bear --config instruct_nerf2nerf/published --editor weights/instruct-pix2pix \\\n"
        '      --instruction "turn the bear into a polar bear" --edit.text-scale 6.5\n'
        '  jaxedit edit runs/snowman --instruction "add a blue hat" --method one-time --steps 200\n'
        "  jaxedit edit runs/snowman --options      (every option that may follow)",
        overrides=True,
    )
    sub.add_argument("source", type=Path, help="a run directory of `jaxedit fit`")
    sub.add_argument("--instruction", help="what to change, as one would tell a person")
    sub.add_argument(
        "--config",
        default="instruct_nerf2nerf/small",
        help="a preset, or a Python file with config() (default instruct_nerf2nerf/small)",
    )
    sub.add_argument(
        "--method",
        choices=("in2n", "intervals", "one-time", "per-view", "sds"),
        help="in2n: the iterative dataset update (default); intervals: all views now and then; one-time: all views once, "
        "then the scene; per-view: the views alone; sds: score distillation",
    )
    sub.add_argument("--steps", type=int, help="in which the scene follows (the preset's)")
    sub.add_argument(
        "--editor",
        help="a folder of InstructPix2Pix weights (the small one that comes with jaxedit)",
    )
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="edit four views in 2-D, write a picture of them, and stop",
    )
    sub.add_argument(
        "--out", type=Path, help="of --dry-run: the picture (default RUN/edits/preview-...png)"
    )
    sub.add_argument("--options", action="store_true", help="list the configuration's options")


def history(add: Add) -> None:
    """`jaxedit history`."""
    sub = add(
        "history",
        "Show the edits of a scene; undo the last, make it again, or set how strongly it shows.",
        "  jaxedit history runs/snowman\n"
        "  jaxedit history runs/snowman --undo\n"
        "  jaxedit history runs/snowman --redo\n"
        "  jaxedit history runs/snowman --blend 0.5      (half way between before and after the last edit)",
    )
    sub.add_argument("source", type=Path, help="a run directory of `jaxedit fit`")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--undo", action="store_true", help="back to before the last edit")
    which.add_argument(
        "--redo", action="store_true", help="make the edit again that was undone last"
    )
    which.add_argument(
        "--blend", type=finite, metavar="STRENGTH", help="of the last edit, from 0 to 1"
    )


def render(add: Add) -> None:
    """`jaxedit render`."""
    sub = add(
        "render",
        "Render a fitted scene along a camera path, or its own views.",
        "  jaxedit render runs/mic --out mic.mp4\n"
        "  jaxedit render runs/mic --path spiral --frames 60 --kind depth --out depth.mp4\n"
        "  jaxedit render runs/mic --path views --split test --out test_views      (a folder of PNGs)\n"
        "  jaxedit render runs/mic --path keys.json --size 400 --out tour.mp4",
    )
    sub.add_argument("source", type=Path, help="a run directory")
    sub.add_argument(
        "--out", type=Path, required=True, help="an .mp4 or .gif, or a folder for PNGs"
    )
    sub.add_argument(
        "--path",
        default="turntable",
        help="turntable, spiral, views (the scene's own), or a JSON file of key frames "
        '({"keys": [4x4 camera-to-world, OpenGL axes, ...], "closed": true}); default turntable',
    )
    sub.add_argument("--split", default="test", help="of --path views (default test)")
    sub.add_argument("--frames", type=int, default=120, help="default 120")
    sub.add_argument("--elevation", type=float, help="of a turntable, degrees above the horizon")
    sub.add_argument("--radius", type=float, help="of a turntable, in the scene's units")
    sub.add_argument("--kind", choices=("colour", "depth", "normal"), default="colour")
    sub.add_argument("--size", type=int, help="longest side in pixels (the training images')")
    sub.add_argument("--fps", type=float, default=30.0)


def export(add: Add) -> None:
    """`jaxedit export`."""
    sub = add(
        "export",
        "Write a fitted scene as a point cloud, a mesh, arrays, or its cameras.",
        "  jaxedit export runs/mic --format ply --out mic.ply                 (coloured points)\n"
        "  jaxedit export runs/mic --format mesh --resolution 256 --out mic.glb\n"
        "  jaxedit export runs/mic --format mesh --level 20 --keep-largest --out mic.ply\n"
        "  jaxedit export runs/mic --format npz --out mic.npz                 (a voxel grid's raw values)\n"
        "  jaxedit export runs/mic --format cameras --out transforms.json     (nerfstudio's layout)",
    )
    sub.add_argument("source", type=Path, help="a run directory")
    sub.add_argument("--format", choices=("ply", "mesh", "npz", "cameras"), required=True)
    sub.add_argument(
        "--out", type=Path, required=True, help=".ply; .ply or .glb for a mesh; .npz; .json"
    )
    sub.add_argument(
        "--world",
        choices=("file", "scene"),
        help="of points, meshes and cameras: the capture's files' (default), or the fitted scene's",
    )
    sub.add_argument("--points", type=int, help="of ply: at most so many (default 200000)")
    sub.add_argument("--seed", type=int, help="of ply: which points are drawn (default 0)")
    sub.add_argument(
        "--resolution",
        type=int,
        help="of mesh, and of npz unless the field is a voxel grid: points along the longest side of the box, "
        "2 to 1024 (default 128)",
    )
    sub.add_argument(
        "--level",
        type=float,
        help="of mesh: the density that is the surface (default: Otsu's threshold between empty and full points)",
    )
    sub.add_argument(
        "--keep-largest",
        type=float,
        nargs="?",
        const=1.0,
        metavar="SHARE",
        help="of mesh: keep only the largest connected part, or those with at least this share of its triangles",
    )


def view(add: Add) -> None:
    """`jaxedit view`."""
    sub = add(
        "view",
        "Look at a fitted scene in the browser and edit it by sentences; Ctrl-C ends.",
        "  jaxedit view runs/mic\n"
        "  jaxedit view runs/mic --live           (shows what `jaxedit fit` in another terminal has reached)\n"
        "  ssh -L 8080:127.0.0.1:8080 MACHINE     (then http://127.0.0.1:8080 shows the viewer of that machine)",
    )
    sub.add_argument("source", type=Path, help="a run directory")
    sub.add_argument("--port", type=int, default=8080, help="default 8080; 0 takes a free one")
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to serve at; the default can be reached from this machine only",
    )
    sub.add_argument(
        "--live", action="store_true", help="load each new checkpoint, and wait for the first one"
    )
    sub.add_argument(
        "--config",
        default="instruct_nerf2nerf/small",
        help="how edits are made: a preset, or a Python file with config() (default instruct_nerf2nerf/small)",
    )
    sub.add_argument(
        "--editor",
        help="a folder of InstructPix2Pix weights (the small one that comes with jaxedit)",
    )


def evaluate(add: Add) -> None:
    """`jaxedit eval`."""
    sub = add(
        "eval",
        "Score a fitted scene, or its last edit: 3-D consistency, the true edited scene, CLIP's directions.",
        "  jaxedit eval runs/mic\n"
        "  jaxedit eval runs/snowman --truth scenes/snowman_with_red_hat --json scores.json\n"
        '  jaxedit eval runs/bear --clip weights/clip --before "a statue of a bear" --after "a polar bear"',
    )
    sub.add_argument("source", type=Path, help="a run directory of `jaxedit fit`")
    sub.add_argument(
        "--truth",
        type=Path,
        help="pictures of the true edited scene by the same cameras as the held-out views",
    )
    sub.add_argument(
        "--clip",
        type=Path,
        help="CLIP as transformers has it, such as clip-vit-base-patch32 with its tokenizer; or image_encoder, "
        "text_encoder (both with projections) and tokenizer in a folder",
    )
    sub.add_argument("--before", help="with --clip: a caption of the scene before the edit")
    sub.add_argument("--after", help="with --clip: a caption of the scene after it")
    sub.add_argument(
        "--frames", type=count, default=20, help="with --clip: of the turntable (default 20)"
    )
    sub.add_argument("--json", type=Path, help="also write the scores here")


def plan(add: Add) -> None:
    """`jaxedit plan`."""
    sub = add(
        "plan",
        "Compile a configuration's real program for a machine that is not here: does it fit? No scene is needed.",
        "  jaxedit plan reconstruct/voxels --topology h200:1\n"
        "  jaxedit plan reconstruct/hash --topology v5e:1x1 --program gradient --size 400\n"
        "  jaxedit plan reconstruct/voxels --topology v5e:2x2 --fit coarse --mesh.data 4 --json plan.json",
        overrides=True,
    )
    sub.add_argument("config", help="a preset, or a Python file with config()")
    sub.add_argument("--topology", required=True, help="h200:1, v5e:1x1, v5e:2x2, cpu:8, ...")
    sub.add_argument(
        "--program",
        choices=("train", "image", "gradient"),
        default="train",
        help="a fit's train step (default), a rendered view, or the gradient of a view's mean square error",
    )
    sub.add_argument("--fit", help="the fit's name or number (the last)")
    sub.add_argument("--size", type=int, default=800, help="of a view: pixels a side (default 800)")
    sub.add_argument("--json", type=Path, help="also write the plan here")


OPTIONS = (demo, fit, train, edit, history, render, export, view, evaluate, plan)
