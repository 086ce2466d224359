"""Some frames of a video, evenly spread, as Qwen-VL's evaluation of SEED-Bench chooses them.

OpenCV decodes the video from its beginning and never seeks, because seeking is not exact in many files. The frames are
encoded as Pillow saves a JPEG by default, which is what the released script does.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from data_pipelines.corpora.rows import BadRow


def frame_indices(frames: int, count: int) -> list[int]:
    """The indices of `count` frames of a stretch of `frames` frames; all of them if it has fewer.

    The stretch is cut into `count` segments of s = (frames - 1) / count. Index i is floor(s / 2) + round(s * i), where
    halves are rounded to even.
    """
    if count > frames:
        return list(range(max(frames, 0)))
    segment = (frames - 1) / count
    return [int(segment / 2) + int(np.round(segment * index)) for index in range(count)]


def segment_of_seconds(start: float, end: float, fps: float, frames: int) -> tuple[int, int]:
    """The first frame of a stretch in seconds and the one after its last frame, in a video of `frames` frames."""
    first, last = (int(min(max(seconds * fps, 0), frames - 1)) for seconds in (start, end))
    return first, last


def read_frames(path: str, count: int, segment: Sequence[float] = (), *, in_frames: bool = False) -> list[bytes]:
    """The chosen frames of a video on a disk, each as a JPEG.

    Args:
      path: of the video.
      count: how many frames; fewer if the stretch is shorter.
      segment: start and end of the stretch; empty for the whole video but its last frame, as in the released script.
      in_frames: whether the segment is in frames, not in seconds.

    Raises:
      BadRow: if the video cannot be opened, or has no frame in the stretch.
    """
    video = cv2.VideoCapture(os.fspath(path))
    try:
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = video.get(cv2.CAP_PROP_FPS)
        if not video.isOpened() or frames < 1:
            raise BadRow("video unreadable", path)
        if not segment:
            first, end = 0, frames - 1
        elif in_frames:
            first, end = int(segment[0]), min(int(segment[1]), frames)
        else:
            first, end = segment_of_seconds(segment[0], segment[1], fps, frames)
        wanted = [first + index for index in frame_indices(end - first, count)]
        return _read(video, wanted, path)
    except cv2.error as error:
        raise BadRow("video unreadable", f"{path}: {error}") from None
    finally:
        video.release()


def _read(video: cv2.VideoCapture, wanted: Sequence[int], path: str) -> list[bytes]:
    pictures: dict[int, bytes] = {}
    for index in range(max(wanted, default=-1) + 1):
        if not video.grab():
            break
        if index in wanted:
            there, pixels_HWC = video.retrieve()
            if not there:
                break
            buffer = io.BytesIO()
            Image.fromarray(cv2.cvtColor(pixels_HWC, cv2.COLOR_BGR2RGB)).save(buffer, "JPEG")
            pictures[index] = buffer.getvalue()
    if not wanted or len(pictures) < len(set(wanted)):
        raise BadRow("video unreadable", f"{path} has {len(pictures)} of the frames {list(wanted)}")
    return [pictures[index] for index in wanted]
