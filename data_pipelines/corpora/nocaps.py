"""nocaps: captions of pictures of Open Images, for evaluation.

Source: https://nocaps.org. Licence: captions CC-BY-2.0; pictures CC-BY-2.0 (Open Images).

    FOLDER/nocaps_val_4500_captions.json
    FOLDER/images/0013ea2087020901.jpg

The file has the form of COCO captions, with ten captions per picture, and the `domain` of every picture. The captions
of the test split are not public.
"""

from __future__ import annotations

from data_pipelines.corpora import coco

LAYOUT = coco.layout("nocaps_{split}_4500_captions.json", "images")
