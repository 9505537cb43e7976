"""`posekd predict MODEL SOURCE...`: finds people in images and videos, and writes or draws them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekd.cli import command_parser
from posekd.cli.eval_options import add_inference, check_inference, pop_inference, refuse_settings
from posekd.cli.networks import add_network, open_network
from posekd.cli.track_options import add_tracking, pop_tracking, track_option
from posekd.files import check_writable

if TYPE_CHECKING:
    from posekd.deploy.boxes import BoxFile
    from posekd.deploy.detector import Detector
    from posekd.deploy.finder import Finder
    from posekd.deploy.frames import Clip
    from posekd.deploy.load import Ready
    from posekd.deploy.results import Writer
    from posekd.skeleton import Skeleton
    from posekd.tracking import TrackSettings

DRAWINGS = "predictions"

EPILOG = """A checkpoint that `posekd train` wrote is run as its run has tested it (flip test, padding, ...), unless an
option says otherwise. Without --draw, --results, --jsonl and --save-labels, people are drawn into predictions/.

examples:
  posekd predict runs/v1 photos --boxes detections.json --draw drawn     # a top-down network crops boxes
  posekd predict runs/v1 mouse.mp4 --padding 1 --track --smooth --draw . # or takes each whole image as one person
  posekd predict runs/higher/best.safetensors 'photos/*.jpg' --jsonl poses.jsonl
  posekd predict hrnet_w32 --weights pose_hrnet_w32_256x192.pth photos --boxes labels.json --results results.json
  posekd predict runs/teacher photos --boxes detections.json --save-labels pseudo.json
  posekd predict recipe.yaml photos --boxes boxes.json --save-labels pseudo.json  # its teacher from elsewhere
  posekd predict runs/higher 0 --jsonl /dev/stdout                       # a webcam, until Ctrl-C"""


def main(argv: Sequence[str]) -> int:
    """Reads the options, finds people frame by frame, and says how many and how fast.

    Raises:
        ValueError: options that do not go together, or any input that does not fit.
        FileNotFoundError: a file or folder does not exist.
        OSError: a result cannot be written; what was written before is kept.
    """
    words = vars(_parser().parse_args(argv))
    inference, tracking = pop_inference(words), pop_tracking(words)
    options = argparse.Namespace(**words)
    if not any((options.draw, options.results, options.jsonl, options.save_labels)):
        options.draw = DRAWINGS
    for file in filter(None, (options.results, options.jsonl, options.save_labels)):
        check_writable(file)
    if options.draw is not None:
        check_writable(Path(options.draw) / "drawing.png")

    from posekd.deploy.frames import open_clips
    from posekd.tracking import refuse_blind

    _check_boxes(options)
    follow = _track_settings(options, tracking)
    finder = _open_finder(options, inference)
    if follow is not None:
        refuse_blind(follow, finder.look)
    clips = open_clips(options.source, options.apply_orientation)
    done = _Done()
    try:
        _run(options, finder, clips, done, follow)
    except OSError as error:
        raise OSError(f"{error} (what was done before is kept: {done.frames} frames)") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted after {done.frames} frames, which are kept") from None
    finally:
        done.tell()
    return 0


def _check_boxes(options: argparse.Namespace) -> None:
    """Refuses options of boxes that do not go together."""
    if options.boxes is not None and options.detector is not None:
        raise ValueError("boxes come from a file or from a detector: give --boxes or --detector")
    if options.detector is None:
        for name in ("person_class", "detector_kind"):
            if vars(options)[name] is not None:
                raise ValueError(f"--{name.replace('_', '-')} is of a detector: give --detector with it")


@dataclass
class _Done:
    """What has been done so far."""

    frames: int = 0
    people: int = 0
    unreadable: int = 0
    seconds: float = 0.0

    def tell(self) -> None:
        """Prints it on standard error: standard output may be a result."""
        if not self.frames:
            return
        bad = f", {self.unreadable} of them not decoded" if self.unreadable else ""
        who = f"{self.people} people" if self.people else "nobody"
        rate = self.frames / max(self.seconds, 1e-9)
        print(f"{who} in {self.frames} frames{bad}; {self.seconds:.1f} s ({rate:.1f} frames/s)", file=sys.stderr)


def _open_finder(options: argparse.Namespace, inference: dict[str, Any]) -> Finder:
    from posekd.deploy.exported import is_exported, open_exported
    from posekd.deploy.finder import NetworkFinder
    from posekd.engine.build import pick_device
    from posekd.paradigms import paradigm_of

    if is_exported(options.model):
        refuse_settings(options.model, vars(options), inference)
        exported = open_exported(options.model, options.batch_size)
        _refuse_boxes(options, exported.crops_boxes)
        return exported
    if options.model.endswith((".yaml", ".yml")):
        found = _foreign_teacher(options, inference)
    else:
        found = open_network(options, inference)
    paradigm = paradigm_of(found.model)
    _refuse_boxes(options, paradigm.crops_boxes)
    settings = found.settings
    if options.detection_threshold is not None and not paradigm.crops_boxes:
        inference = {"detection_threshold": options.detection_threshold}
        check_inference(inference, paradigm, options.model)
        settings = replace(settings, **inference)
    finder = NetworkFinder(found.model, found.skeleton, settings, found.padding, options.batch_size)
    return finder.to(pick_device(options.device or "auto"))


def _foreign_teacher(options: argparse.Namespace, inference: Mapping[str, Any]) -> Ready:
    """The teacher from elsewhere that a recipe names, tested as the recipe says."""
    from posekd.deploy.load import Ready
    from posekd.engine.recipes.recipe import read_recipe
    from posekd.engine.teachers import foreign_network
    from posekd.paradigms import paradigm_of

    for name in ("weights", "weights_key", "skeleton", "size"):
        if vars(options)[name] is not None:
            raise ValueError(f"--{name.replace('_', '-')}: {options.model} says what its teacher is, in `teacher`")
    recipe = read_recipe(options.model)
    network, skeleton = foreign_network(recipe)
    paradigm = paradigm_of(network)
    check_inference(inference, paradigm, options.model)
    settings = recipe.inference if isinstance(recipe.inference, paradigm.inference) else paradigm.inference()
    padding = recipe.loader.padding if options.padding is None else options.padding
    return Ready(network.eval(), skeleton, replace(settings, **inference), padding)


def _refuse_boxes(options: argparse.Namespace, crops_boxes: bool) -> None:
    if not crops_boxes and (options.boxes is not None or options.detector is not None):
        raise ValueError(f"--boxes and --detector give boxes to crop: {options.model} sees whole images and needs none")


def _run(
    options: argparse.Namespace, finder: Finder, clips: Sequence[Clip], done: _Done, follow: TrackSettings | None
) -> None:
    from posekd.cli.progress import Bar
    from posekd.deploy.boxes import read_boxes
    from posekd.deploy.predict import stream
    from posekd.deploy.tracking import tracked

    file: BoxFile | None = None
    if options.boxes is not None:
        file = read_boxes(options.boxes, options.detection_threshold or 0.0)
    boxes = file if options.detector is None else _open_detector(options)
    counts = [clip.count for clip in clips]
    total = None if None in counts else sum(count or 0 for count in counts)
    found = stream(
        finder,
        clips,
        boxes,
        image_id=None if file is None else file.image_id,
        batch_size=options.batch_size,
        threads=options.threads,
    )
    start = time.perf_counter()
    with ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in _writers(options, finder.skeleton)]
        on_frame = stack.enter_context(Bar("predicting", "frames"))
        for one in found if follow is None else tracked(found, finder.skeleton, follow, finder.look):
            if one.frame.problem is not None:
                print(f"posekd: warning: {one.frame.problem}", file=sys.stderr)
            for add in writers:
                add(one)
            done.frames, done.people = done.frames + 1, done.people + len(one.people)
            done.unreadable += one.frame.image is None
            done.seconds = time.perf_counter() - start
            on_frame(done.frames, total)
    if file is not None:
        file.check_matched()


def _open_detector(options: argparse.Namespace) -> Detector:
    from posekd.deploy.detector import Detector

    threshold = {} if options.detection_threshold is None else {"threshold": options.detection_threshold}
    detector = Detector(options.detector, options.person_class or 0, kind=options.detector_kind, **threshold)
    height, width = detector.size
    print(f"detector {options.detector}: {detector.kind} at {height}x{width}", file=sys.stderr)
    return detector


def _track_settings(options: argparse.Namespace, given: dict[str, Any]) -> TrackSettings | None:
    """How people are followed; None if nobody asked for it.

    Raises:
        ValueError: options of tracking without it.
    """
    from posekd.tracking import TrackSettings

    if not options.track and not options.smooth:
        if given:
            words = ", ".join(f"--{track_option(setting)}" for setting in given)
            raise ValueError(f"{words}: these say how people are followed: give --track (or --smooth) with them")
        return None
    return TrackSettings(smooth=options.smooth, keypoint_threshold=options.keypoint_threshold, **given)


def _writers(options: argparse.Namespace, skeleton: Skeleton) -> Iterator[Writer]:
    from posekd.deploy import drawings, results

    threshold = options.keypoint_threshold
    wanted: list[tuple[str | None, Callable[[str], Writer]]] = [
        (options.results, results.coco_results),
        (options.jsonl, results.json_lines),
        (options.save_labels, lambda file: results.coco_labels(file, skeleton, threshold)),
        (options.draw, lambda folder: drawings.drawings(Path(folder), skeleton, threshold)),
    ]
    return (make(place) for place, make in wanted if place is not None)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("predict", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    model_help = "a run's folder, a .safetensors file with its card, an exported .onnx or .pt2, or a name with "
    add("model", help=model_help + "--weights; or a recipe (.yaml), whose teacher from elsewhere is meant")
    add("source", nargs="+", help="images, videos, folders, patterns ('*.jpg'), or the number of a webcam")
    add("--draw", metavar="DIR", help=f"draw people into PNGs and MP4s there ({DRAWINGS}, if nothing is asked for)")
    add("--results", metavar="FILE", help="write people in COCO's results format (JSON)")
    add("--jsonl", metavar="FILE", help="write a line of JSON for each frame; /dev/stdout works")
    add("--save-labels", metavar="FILE", help="write COCO labels to train from, with confidence (of image files)")
    add("--boxes", metavar="FILE", help="top-down: COCO labels, or detections (image_id, bbox, score)")
    add("--detector", metavar="FILE", help="top-down: a detector in an ONNX file (YOLO, RT-DETR, RTMDet)")
    add("--person-class", type=int, metavar="N", help="index of the detector's class to look at (0)")
    add("--detector-kind", metavar="KIND", help="what the detector gives, where its graph does not tell")
    threshold_help = "leave out boxes with a lower score (0; a detector's 0.3); bottom-up: peaks must be above it (0.1)"
    add("--detection-threshold", type=float, metavar="S", help=threshold_help)
    threshold_help = "keypoints with a lower score are not drawn, not labelled and not tracked (0.2)"
    add("--keypoint-threshold", type=float, default=0.2, metavar="S", help=threshold_help)
    add("--track", action="store_true", help="number people over the frames of each video or folder, by OKS")
    add("--smooth", action="store_true", help="track people, and filter their keypoints (One-Euro)")
    add_tracking(parser)
    add_network(parser)
    add_inference(parser)
    add("--apply-orientation", action="store_true", help="turn images as their EXIF tags say (as viewers do)")
    add("--batch-size", type=int, default=16, metavar="N", help="people or images per batch (16)")
    add("--threads", type=int, default=2, metavar="N", help="that decode images (2)")
    add("--device", help="cpu, cuda, cuda:1... (default: the GPU if there is one)")
    return parser
