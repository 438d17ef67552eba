"""Data that people really have: each row is a small tree or archive, and what must come out of it.

A tree is a string of names; the pixels do not matter here. Labels are compared as "name: class".
"""

import io
import json
import os
import random
import re
import struct
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import folders
import sources
from datasets import main, path_source
from sources import InputError

PNG = io.BytesIO()
Image.new("RGB", (8, 8), (200, 30, 40)).save(PNG, "PNG")
PNG = PNG.getvalue()


def tree(text):
    """ "a/1-3 b/x.png" -> the files: a/1.png, a/2.png, a/3.png and b/x.png, all of them images."""
    files = {}
    for word in text.split():
        folder, slash, name = word.rpartition("/")
        first, dash, last = name.partition("-")
        if dash and first.isdigit() and last.isdigit():
            for k in range(int(first), int(last) + 1):
                files[f"{folder}{slash}{k}.png"] = PNG
        else:
            files[word] = PNG
    return files


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def opened(path):
    return path_source(Path(path))[2]()


def short_form(source):
    """{"train": {class or None: number of images}, "test": ...} without empty parts."""
    counts = {}
    for i in range(len(source.names)):
        split = "test" if source.split and source.split[i] else "train"
        label = source.classes[source.labels[i]] if source.labels else None
        part = counts.setdefault(split, {})
        part[label] = part.get(label, 0) + 1
    return counts


CAT_DOG = {"cat": 3, "dog": 2}
TRAIN = {"train": CAT_DOG}
BOTH = {"train": CAT_DOG, "test": {"cat": 1, "dog": 1}}

LAYOUTS = [  # id, files, what comes out, words that are said (None: nothing)
    ("plain", "cat/1-3 dog/1-2", TRAIN, None),
    ("outer folder", "x/y/cat/1-3 x/y/dog/1-2", TRAIN, None),
    # K1: splits by any name
    ("Training", "Training/cat/1-3 Training/dog/1-2 Testing/cat/1 Testing/dog/1", BOTH, None),
    ("Train", "Train/cat/1-3 Train/dog/1-2 Test/cat/1 Test/dog/1", BOTH, None),
    ("TRAIN", "TRAIN/cat/1-3 TRAIN/dog/1-2 VALID/cat/1 VALID/dog/1", BOTH, None),
    ("eval", "train/cat/1-3 train/dog/1-2 eval/cat/1 eval/dog/1", BOTH, None),
    (
        "evaluation",
        "training/cat/1-3 training/dog/1-2 evaluation/cat/1 evaluation/dog/1",
        BOTH,
        None,
    ),
    ("holdout", "train/cat/1-3 train/dog/1-2 hold_out/cat/1 hold_out/dog/1", BOTH, None),
    ("dev", "train/cat/1-3 train/dog/1-2 dev/cat/1 dev/dog/1", BOTH, None),
    ("set", "training_set/cat/1-3 training_set/dog/1-2 test_set/cat/1 test_set/dog/1", BOTH, None),
    ("years", "train2017/cat/1-3 train2017/dog/1-2 val2017/cat/1 val2017/dog/1", BOTH, None),
    (
        "suffix",
        "images_train/cat/1-3 images_train/dog/1-2 images_val/cat/1 images_val/dog/1",
        BOTH,
        None,
    ),
    ("camel", "TrainSet/cat/1-3 TrainSet/dog/1-2 TestSet/cat/1 TestSet/dog/1", BOTH, None),
    ("other prefix", "a_train/cat/1-3 a_train/dog/1-2 b_test/cat/1 b_test/dog/1", BOTH, None),
    (
        "Intel",
        "seg_train/seg_train/cat/1-3 seg_train/seg_train/dog/1-2 seg_test/seg_test/cat/1"
        " seg_test/seg_test/dog/1 seg_pred/seg_pred/1-4",
        BOTH,
        "4 images outside seg_train/ and seg_test/ are not used (the first: 'seg_pred/",
    ),
    (
        "ASL",
        "a_train/a_train/cat/1-3 a_train/a_train/dog/1-2 a_test/a_test/1-2",
        TRAIN,
        "2 images of no class that is trained on are not used (the first: 'a_test/a_test/1.png')",
    ),
    (
        "chest_xray",
        "c/chest_xray/train/cat/1-3 c/train/cat/1-3 c/train/dog/1-2 c/test/cat/1 c/test/dog/1"
        " c/val/cat/1-2 __MACOSX/c/1-9",
        BOTH,
        "5 images outside train/ and test/ are not used",
    ),
    (
        "fruits",
        "Training/cat/1-3 Training/dog/1-2 Test/cat/1 Test/dog/1 test-multiple_fruits/1-4",
        BOTH,
        "4 images outside",
    ),
    (
        "real-vs-fake",
        "r/train/cat/1-3 r/train/dog/1-2 r/valid/cat/1 r/valid/dog/1 r/test/cat/1 r/test/dog/1",
        BOTH,
        "2 images outside train/ and test/",
    ),
    ("YOLO", "images/train/1-3 images/val/1-2", {"train": {None: 3}, "test": {None: 2}}, None),
    ("train only", "train/cat/1-3 train/dog/1-2", TRAIN, None),
    ("train, pred", "train/cat/1-3 train/dog/1-2 pred/1-4", TRAIN, "4 images outside train/"),
    ("train, rest", "train/cat/1-3 train/dog/1-2 previews/1-4", TRAIN, "4 images outside train/"),
    ("no train", "test/cat/1-3 test/dog/1 val/dog/1", TRAIN, "all for training: test/ val/"),
    (
        "CycleGAN",
        "trainA/1-3 trainB/1-2 testA/1 testB/1",
        {"train": {"a": 3, "b": 2}, "test": {"a": 1, "b": 1}},
        "held out: testA/ testB/",
    ),
    ("below", "cat/train/1-3 cat/test/1 dog/train/1-2 dog/test/1", BOTH, None),
    ("below, 2", "x/cat/Training/1-3 x/cat/Val/1 x/dog/Training/1-2 x/dog/Val/1", BOTH, None),
    ("beside", "cat/1-3 dog/1-2 test/1-4", TRAIN, "4 images of no class that is trained on"),
    ("beside, 2", "cat/1-3 dog/1-2 test/cat/1 test/dog/1", BOTH, "held out: test/"),
    ("odd classes", "train_station/1-3 bus/1-2", {"train": {"bus": 2, "train_station": 3}}, None),
    (
        "odd, 2",
        "train/1-3 test_tube/1-2 cat/1",
        {"train": {"cat": 1, "test_tube": 2, "train": 3}},
        None,
    ),
    ("odd, 3", "valid/1-3 invalid/1-2", {"train": {"invalid": 2, "valid": 3}}, None),
    (
        "below and a stray",
        "cat/train/1-3 cat/test/1 dog/train/1-2 dog/test/1 cat/x.png",
        BOTH,
        "1 image outside train/ and test/ is not used (the first: 'cat/x.png')",
    ),
    ("words", "traindata/cat/1-3 traindata/dog/1-2 testimages/cat/1 testimages/dog/1", BOTH, None),
    ("test1", "train/cat/1-3 train/dog/1-2 test1/cat/1 test1/dog/1", BOTH, None),
    ("case", "train/cat/1-3 train/dog/1-2 test/Cat/1 test/DOG/1", BOTH, None),
    (
        "train_cat",
        "train_cat/1-3 train_dog/1-2 test/1-2",
        TRAIN,
        "2 images of no class that is trained on",
    ),
    (
        "one folder",
        "photos/1-5 test/1-2",
        {"train": {None: 5}, "test": {None: 2}},
        "held out: test/",
    ),
    (
        "one folder, 3",
        "photos/1-5 valid/1-2",
        {"train": {None: 5}, "test": {None: 2}},
        "held out: valid/",
    ),
    ("Valid", "Valid/1-3 Invalid/1-2", {"train": {"Invalid": 2, "Valid": 3}}, None),
    (
        "one folder, 2",
        "mine/cat/1-3 mine/dog/1-2 evaluation/cat/1 evaluation/dog/1",
        BOTH,
        "held out: evaluation/",
    ),
    (
        "another language",
        "Training/cat/1-3 Training/dog/1-2 Validierung/cat/1 Validierung/dog/1",
        TRAIN,
        "2 images outside Training/ are not used (the first: 'Validierung/cat/1')",
    ),
    (
        "MVTec",
        "m/cat/train/good/1-3 m/cat/test/good/1 m/cat/ground_truth/bad/1"
        " m/dog/train/good/1-2 m/dog/test/bad/1",
        BOTH,
        "1 image outside train/ and test/ is not used (the first: 'm/cat/ground_truth/bad/1')",
    ),
    # K1: folders that are no classes
    (
        "Office-31",
        "amazon/images/cat/1-2 amazon/images/dog/1 webcam/images/cat/1 webcam/images/dog/1",
        TRAIN,
        "2 folders are passed over: only those inside can be classes (the first: 'amazon')",
    ),
    ("FFHQ", "x/00000/00000.png x/01000/01000.png x/01000/01999.png", {"train": {None: 3}}, None),
    ("FFHQ, 2", "00000/img00000000.png 00001/img00001000.png", {"train": {None: 2}}, None),
    (
        "numbered classes",
        "00000/00000-00001 00001/00000-00001",
        {"train": {"00000": 2, "00001": 2}},
        None,
    ),
    (
        "folds",
        "fold1/cat/1-2 fold1/dog/1 fold2/cat/1 fold2/dog/1",
        TRAIN,
        "2 folders are passed over: only those inside can be classes (the first: 'fold1')",
    ),
    (
        "folds and a stray",
        "fold1/cat/1-2 fold1/dog/1 fold2/cat/1 fold2/dog/1 fold2/x.png",
        TRAIN,
        "1 image without a class is not used (the first: 'fold2/x.png')",
    ),
    ("parts", "p1/cat/1-3 p2/dog/1-2", TRAIN, "2 folders are passed over: only those inside"),
    (
        "parts by number",
        "HAM_part_1/cat/1-3 HAM_part_2/dog/1-2",
        TRAIN,
        "2 folders are passed over: only those inside can be classes (the first: 'HAM_part_1')",
    ),
    (
        "NIH",
        "images_001/images/1-3 images_002/images/1-2",
        {"train": {None: 5}},
        "2 folders are passed over: only those inside",
    ),
    (
        "a copy inside",
        "flowers/cat/1-2 flowers/dog/1 flowers/flowers/cat/1 flowers/flowers/dog/1",
        TRAIN,
        "1 folder is passed over: only those inside can be classes (the first: 'flowers')",
    ),
    ("images below", "cat/images/1-3 dog/images/1-2", TRAIN, None),
    (
        "masks",
        "images/cat/1-3 images/dog/1-2 masks/cat/1-3 masks/dog/1-2",
        TRAIN,
        "5 images outside the folders of images",
    ),
    ("pets", "images/1-3 annotations/trimaps/1-3", {"train": {None: 3}}, "3 images outside"),
    (
        "masks below",
        "train/images/1-3 train/masks/1-3 test/images/1 test/masks/1",
        {"train": {None: 3}, "test": {None: 1}},
        "4 images outside",
    ),
    # K1: a class that training lacks
    (
        "new class",
        "train/cat/1-3 train/dog/1-2 test/cat/1 test/dog/1 test/cow/1-2",
        BOTH,
        "2 images of no class that is trained on are not used (the first: 'test/cow/1.png')",
    ),
    ("only new", "train/cat/1-3 train/dog/1-2 test/cow/1-2", TRAIN, "2 images of no class"),
    (
        "val helps",
        "train/cat/1-3 train/dog/1-2 test/1-9 val/cat/1 val/dog/1",
        BOTH,
        "9 images of no class",
    ),
    # K2: odd paths
    (
        "stray",
        "cat/1-3 dog/1-2 preview.png",
        TRAIN,
        "1 image without a class is not used (the first: 'preview.png')",
    ),
    ("stray beside one", "data/cat/1-3 data/dog/1-2 preview.png", TRAIN, "'preview.png'"),
    (
        "stray in train",
        "train/cat/1-3 train/dog/1-2 train/x.png test/cat/1 test/dog/1",
        BOTH,
        "'train/x.png'",
    ),
    ("flat test", "train/cat/1-3 train/dog/1-2 test/1-2", TRAIN, "'test/1.png'"),
    (
        "most are stray",
        "cat/1 dog/1 1-5",
        {"train": {None: 7}},
        "no labels: 5 images are without a class (the first: '1.png')",
    ),
    ("flat", "1-5", {"train": {None: 5}}, None),
    ("one class", "cat/1-5", {"train": {None: 5}}, None),
    ("one class and a stray", "cat/1-5 x.png", {"train": {None: 6}}, None),
    (
        "flat train",
        "train/1-3 test/cat/1 test/dog/1",
        {"train": {None: 3}, "test": {None: 2}},
        None,
    ),
]


@pytest.mark.parametrize(
    "files, expected, words", [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS]
)
@pytest.mark.parametrize("kind", ["folder", "zip", "windows.zip", "tar", "tgz"])
def test_layouts(here, kind, files, expected, words):
    source = opened(pack(here, kind, tree(files)))
    assert short_form(source) == expected
    assert (words or "") in source.unused and bool(words) == bool(source.unused)
    assert source.read(0).size == (8, 8)
    said = sum(map(int, re.findall(r": (\d+) images? .*not used", source.unused)))
    images = [name for name in tree(files) if not name.startswith("__MACOSX")]
    assert len(source.names) + said == len(images)  # no image is left out in silence


def pack(here, kind, files):
    """Files as a folder, zip or tar."""
    if kind == "folder":
        return write(here / "set", files)
    path = here / f"set.{kind}"
    if kind.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                info = zipfile.ZipInfo(name)
                if kind == "windows.zip":
                    info.filename = name.replace("/", "\\")
                archive.writestr(info, content)
        return path
    with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_whatever_the_folders(here):
    """No image is left out in silence, and training images have all the classes."""
    rng = random.Random(0)
    words = (
        "train test val cat dog images masks x fold1 fold2 seg_train seg_test pred labels".split()
    )
    for _ in range(400):
        some = rng.sample(words, rng.randint(1, 7))
        names = set()
        for _ in range(rng.randint(1, 25)):
            outer = rng.choices(some, k=rng.randint(0, 4))
            names.add("/".join([*outer, f"{rng.randint(0, 9)}.png"]))
        source = folders.from_files(sorted(names), lambda i: i, "p")
        said = sum(map(int, re.findall(r": (\d+) images? .*not used", source.unused)))
        assert len(source.names) + said == len(names)
        trained = short_form(source)["train"]
        assert set(source.classes or [None]) == set(trained)
        assert [sorted(names)[source.read(k)] for k in range(len(source.names))] == source.names


# ------------------------------------------------------------------------------ label files

FIVE = [f"{k}.png" for k in range(1, 6)]
CSV = "1.png,cat\n2.png,cat\n3.png,cat\n4.png,dog\n5.png,dog\n"
SAID = "the labels are those of "


def table(head, line, names=FIVE, labels=("cat", "cat", "cat", "dog", "dog"), end="\n"):
    """A text with a line for each image."""
    return head + "".join(
        line.format(n=n, c=c, s=n[:-4]) + end for n, c in zip(names, labels, strict=True)
    )


ONE_HOT = table("filename, cat, dog\n", "{n}, {c}", labels=["1, 0"] * 3 + ["0, 1"] * 2)
ROWS = [{"file_name": n, "label": c} for n, c in zip(FIVE, ["cat"] * 3 + ["dog"] * 2, strict=True)]
COCO = {
    "images": [{"id": k, "file_name": name} for k, name in enumerate(FIVE)],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    "annotations": [{"image_id": k, "category_id": 3 + k // 3} for k in range(5)],
}
SPLIT_ROWS = "file,label,split\n" + "".join(
    f"{k}.png,{'cat' if k in (1, 2, 3, 6) else 'dog'},{'train' if k < 6 else 'test'}\n"
    for k in range(1, 8)
)

LABEL_FILES = [  # id, images, the files, what comes out, words
    ("labels.csv", "1-5", {"labels.csv": "filename,label\n" + CSV}, TRAIN, SAID + "labels.csv"),
    ("no titles", "1-5", {"labels.csv": CSV}, TRAIN, SAID),
    ("metadata.csv", "1-5", {"metadata.csv": "file_name,label\n" + CSV}, TRAIN, SAID),
    (
        "below",
        "images/1-5",
        {"metadata.csv": table("file_name,label\n", "images/{n},{c}")},
        TRAIN,
        SAID,
    ),
    ("in it", "images/1-5", {"images/metadata.csv": "file_name,label\n" + CSV}, TRAIN, SAID),
    ("base name", "x/images/1-5", {"x/labels.csv": "file_name,label\n" + CSV}, TRAIN, SAID),
    ("ids", "train/1-5", {"labels.csv": table("id,breed\n", "{s},{c}")}, TRAIN, SAID),
    (
        "absolute",
        "1-5",
        {"labels.csv": table("path,class\n", "/kaggle/input/{n},{c}")},
        TRAIN,
        SAID,
    ),
    ("windows", "a/1-5", {"labels.csv": table("path,class\n", "C:\\a\\{n},{c}")}, TRAIN, SAID),
    (
        "titles",
        "1-5",
        {"x.csv": table("Unnamed: 0,Image_ID,Class Name\n", "7,{s},{c}")},
        TRAIN,
        SAID,
    ),
    ("other suffix", "1-5", {"x.csv": table("image,category\n", "{s}.jpg,{c}")}, TRAIN, SAID),
    ("quoted", "1-5", {"x.csv": table("image,category\n", '"{n}","{c}"')}, TRAIN, SAID),
    (
        "BOM, CRLF, ;",
        "1-5",
        {"x.csv": "\ufeff" + table("image;label\r\n", "{n};{c}", end="\r\n")},
        TRAIN,
        SAID,
    ),
    ("UTF-16", "1-5", {"x.csv": table("image\tlabel\n", "{n}\t{c}").encode("utf-16")}, TRAIN, SAID),
    ("tsv", "1-5", {"x.tsv": table("image\tlabel\n", "{n}\t{c}")}, TRAIN, SAID),
    ("txt", "images/1-5", {"list.txt": table("", "images/{n} {c}")}, TRAIN, SAID),
    ("spaces", "1-5", {"list.txt": table("", "./{n}    {c}")}, TRAIN, SAID),
    ("jsonl", "1-5", {"metadata.jsonl": "\n".join(map(json.dumps, ROWS))}, TRAIN, SAID),
    ("json rows", "1-5", {"labels.json": json.dumps(ROWS)}, TRAIN, SAID),
    (
        "json map",
        "1-5",
        {"labels.json": json.dumps({r["file_name"]: r["label"] for r in ROWS})},
        TRAIN,
        SAID,
    ),
    (
        "StyleGAN",
        "00000/1-5",
        {
            "dataset.json": json.dumps(
                {"labels": [[f"00000/{k}.png", int(k > 3)] for k in range(1, 6)]}
            )
        },
        {"train": {"0": 3, "1": 2}},
        SAID,
    ),
    (
        "StyleGAN, none",
        "00000/1-5",
        {"dataset.json": '{"labels": null}'},
        {"train": {None: 5}},
        None,
    ),
    ("Roboflow", "1-5", {"_classes.csv": ONE_HOT}, TRAIN, SAID),
    (
        "tiny-imagenet",
        "train/cat/images/1-3 train/dog/images/4-5 val/images/8-9 test/images/1-4",
        {
            "val/val_annotations.txt": "8.png\tcat\t0\t0\t9\t9\n9.png\tdog\t0\t0\t9\t9\n",
            "words.txt": "cat\ta cat, any cat\n",
            "train/cat/cat_boxes.txt": "1.png\t0\t0\t9\t9\n2.png\t3\t0\t9\t9\n",
        },
        BOTH,
        "4 images of no class",
    ),
    (
        "boxes beside classes",
        "cat/1-3 dog/4-5",
        {"anno_train.csv": table("", "{n},{c},7,9,9", labels=[3, 4, 5, 3, 4])},
        TRAIN,
        "anno_train.csv: labels of 5 of 5 images: not used",
    ),
    (
        "NIH",
        "images_001/images/1-3 images_002/images/4-5",
        {"Data.csv": table("Image Index,Finding Labels,Age\n", "{n},{c},7")},
        TRAIN,
        SAID + "Data.csv",
    ),
    (
        "LFW",
        "cat/1-3 dog/4-5",
        {"lfw_allnames.csv": "name,images\ncat,3\ndog,2\n", "labels.csv": "id,label\nx,3\n"},
        TRAIN,
        "1 name of labels.csv that no image has is passed over",
    ),
    (
        "Food-101",
        "f/images/cat/1-4 f/images/dog/5-7",
        {
            "f/meta/train.txt": "cat/1\ncat/2\ncat/3\ndog/5\ndog/6\n",
            "f/meta/test.txt": "cat/4\ndog/7\n",
            "f/meta/train.json": '{"cat": ["cat/1", "cat/2", "cat/3"], "dog": ["dog/5", "dog/6"]}',
        },
        BOTH,
        "the split is that of a label file (test.txt and train.txt)",
    ),
    (
        "lists",
        "1-7",
        {
            "train.txt": table("", "{n} {c}"),
            "test.txt": "6.png cat\n7.png dog\n",
        },
        BOTH,
        "the split is that of a label file (test.txt and train.txt)",
    ),
    (
        "trainval",
        "cat/1-4 dog/5-7",
        {
            "trainval.txt": "1\n2\n3\n4\n5\n6\n7\n",
            "train.txt": "1\n2\n3\n5\n6\n",
            "val.txt": "4\n7\n",
        },
        BOTH,
        "the split is that of a label file",
    ),
    (
        "split, labels agree",
        "cat/1-3 cat/6.png dog/4-5 dog/7.png",
        {"x.csv": SPLIT_ROWS},
        BOTH,
        "the split is that of a label file (test and train)",
    ),
    (
        "CelebA",
        "img/1-5",
        {"list_eval_partition.csv": table("image_id,partition\n", "{n},{c}", labels="00012")},
        {"train": {None: 3}, "test": {None: 1}},
        "1 image outside split 0 and split 1 is not used (the first: 'img/5.png')",
    ),
    (
        "split only",
        "1-5",
        {"split.json": json.dumps({"train": FIVE[:3], "test": FIVE[3:]})},
        {"train": {None: 3}, "test": {None: 2}},
        "the split is that of a label file (test and train)",
    ),
    (
        "held-out list",
        "cat/1-4 dog/5-7",
        {"validation_list.txt": "cat/4.png\ndog/7.png\n"},
        BOTH,
        "the split is that of a label file (validation_list.txt)",
    ),
    (
        "numbered lists",
        "cat/1-4 dog/5-7",
        {
            "trainlist01.txt": "cat/1\ncat/2\ncat/3\ndog/5\ndog/6\n",
            "testlist01.txt": "cat/4\ndog/7\n",
        },
        BOTH,
        "the split is that of a label file (testlist01.txt and trainlist01.txt)",
    ),
    (
        "all held out",
        "cat/1-3 dog/4-5",
        {"test1.txt": "1\n2\n3\n", "test2.txt": "4\n5\n"},
        TRAIN,
        "split of 5 of 5 images (test1.txt and test2.txt): not used",
    ),
    (
        "two Unicode forms",
        "1-3",
        {"x.csv": "image,label\n1.png,\u00e9\n2.png,e\u0301\n3.png,b\n"},
        {"train": {"\u00e9": 2, "b": 1}},
        SAID,
    ),
    (
        "nothing left to train on",
        "test/cat/1-2 val/1-3 4-5",
        {
            "x.csv": "image,split\ntest/cat/1.png,test\ntest/cat/2.png,test\n"
            "val/1.png,test\nval/2.png,test\n4.png,train\n"
        },
        {"train": {None: 5}},
        "split of 5 of 7 images (test and train): not used",
    ),
    (
        "split of a few",
        "cat/1-3 dog/1-2",
        {"x.csv": "image,split\ncat/1.png,train\ncat/2.png,test\n"},
        TRAIN,
        "split of 2 of 5 images (test and train): not used",
    ),
    (
        "list by class",
        "1-5",
        {"x.json": json.dumps({"cat": FIVE[:3], "dog": FIVE[3:], "made by": "me"})},
        TRAIN,
        SAID,
    ),
    (
        "json below",
        "1-5",
        {"x.json": json.dumps({r["file_name"]: {"label": r["label"]} for r in ROWS})},
        TRAIN,
        SAID,
    ),
    ("json in a key", "1-5", {"x.json": json.dumps({"v": 1, "images": ROWS})}, TRAIN, SAID),
    (
        "Latin-1",
        "1-5",
        {"x.csv": table("image,label\n", "{n},caf\u00e9 {c}").encode("cp1252")},
        {"train": {"caf\u00e9 cat": 3, "caf\u00e9 dog": 2}},
        SAID,
    ),
    ("comment", "1-5", {"x.csv": "# mine\n" + table("image,label\n", "{n},{c}")}, TRAIN, SAID),
    (
        "case of names",
        "IMG_1.PNG IMG_2.PNG IMG_3.PNG",
        {"x.csv": "image,label\nimg_1.png,cat\nimg_2.png,cat\nimg_3.png,dog\n"},
        {"train": {"cat": 2, "dog": 1}},
        SAID,
    ),
    (
        "007",
        "1-5",
        {"x.csv": table("image,label\n", "{n},{c}", labels=["007", "007", "NA", "NA", "NA"])},
        {"train": {"007": 2, "NA": 3}},
        SAID,
    ),
    (
        "007 alone",
        "1-5",
        {"x.csv": table("image,label\n", "{n},{c}", labels=["007", "7", "7", "010", "010"])},
        {"train": {"007": 1, "7": 2, "010": 2}},
        SAID,
    ),
    (
        "no label column",
        "1-5",
        {"x.csv": table("image,artist,style\n", "{n},x,{c}")},
        {"train": {None: 5}},
        "'x.csv' cannot be read (no column is named label: image, artist, style)",
    ),
    (
        "names alone",
        "train/1-5",
        {"train.csv": "image,label\n" + CSV, "test.csv": "image\n1.png\n"},
        TRAIN,
        SAID + "train.csv",
    ),
    (
        "sidecars",
        "cat/1-3 dog/1-2",
        {f"cat/{k}.png.json": '{"title": "x", "time": {"at": "1"}}' for k in (1, 2, 3)},
        TRAIN,
        None,
    ),
    ("COCO", "1-5", {"train.json": json.dumps(COCO)}, TRAIN, SAID),
    (
        "several labels",
        "1-5 6.png",
        {"x.csv": "image,label\n" + CSV + "6.png,cat\n6.png,dog\n"},
        TRAIN,
        "1 image with several labels is without a class (the first: '6.png')",
    ),
    ("one title", "1-5", {"x.csv": table("Image,Id\n", "{n},{c}")}, TRAIN, SAID),
    (
        "numbers",
        "1-5",
        {"x.csv": table("image,level\n", "{n},{c}", labels=[10, 9, 9, 10, 9])},
        {"train": {"9": 3, "10": 2}},
        SAID,
    ),
    (
        "long numbers",
        "1-5",
        {"x.csv": table("image,label\n", "{n},{c}", labels=[10**17, 10**17 + 1] * 2 + [10**17])},
        {"train": {str(10**17): 3, str(10**17 + 1): 2}},
        SAID,
    ),
    (
        "whole",
        "1-5",
        {"x.csv": table("image,level\n", "{n},{c}", labels=["1.0", "0.0"] * 2 + ["1.0"])},
        {"train": {"0": 2, "1": 3}},
        SAID,
    ),
    (
        "scores",
        "1-5",
        {"x.csv": table("image,label\n", "{n},{c}", labels=[0.5, 0.25, 3.5, 1.5, 2])},
        {"train": {None: 5}},
        "x.csv: 5 values for 5 images are no classes",
    ),
    (
        "many",
        "1-30",
        {
            "x.csv": table(
                "image,label\n", "{n},{c}", [f"{k}.png" for k in range(1, 31)], range(100, 130)
            )
        },
        {"train": {None: 30}},
        "30 values for 30 images are no classes",
    ),
    (
        "captions",
        "1-5",
        {"metadata.csv": table("file_name,text\n", "{n},a photo of a {c}")},
        {"train": {None: 5}},
        None,
    ),
    ("split", "1-7", {"x.csv": SPLIT_ROWS}, BOTH, SAID),
    (
        "Birds",
        "train/CAT/1-3 train/DOG/1-2 test/CAT/1 test/DOG/1",
        {"birds.csv": "class id,filepaths,labels,data set\n0,train/CAT/1.png,CAT,train\n"},
        {"train": {"CAT": 3, "DOG": 2}, "test": {"CAT": 1, "DOG": 1}},
        None,
    ),
    (
        "two tables",
        "train/1-5 test/1-2",
        {"train.csv": "image,label\n" + CSV, "test.csv": "image,label\n1.png,cat\n2.png,dog\n"},
        BOTH,
        SAID,
    ),
    (
        "two metadata",
        "train/1-5 test/1-2",
        {
            "train/metadata.csv": "file_name,label\n" + CSV,
            "test/metadata.csv": "file_name,label\n1.png,cat\n2.png,dog\n",
        },
        BOTH,
        SAID,
    ),
    (
        "Kaggle",
        "train/1-5 test/1-4",
        {"train.csv": "image,label\n" + CSV, "sampleSubmission.csv": "image,label\n1.png,0\n"},
        TRAIN,
        "4 images of no class",
    ),
    (
        "GTSRB",
        "Train/0/1-3 Train/1/4-5 Test/1-2 Meta/0-1",
        {
            "Train.csv": table("Width,ClassId,Path\n", "5,{c},Train/{c}/{n}", labels="00011"),
            "Test.csv": "Width,ClassId,Path\n5,0,Test/1.png\n5,1,Test/2.png\n",
        },
        {"train": {"0": 3, "1": 2}, "test": {"0": 1, "1": 1}},
        "2 images outside",
    ),
    (
        "agree",
        "a/1-3 b/4-5",
        {"x.csv": table("image,label\n", "{n},{c}")},
        {"train": {"a": 3, "b": 2}},
        None,
    ),
    (
        "disagree",
        "a/1-2 b/3-5",
        {"x.csv": table("image,label\n", "{n},{c}")},
        TRAIN,
        "x.csv, not the folders",
    ),
    (
        "some missing",
        "1-7",
        {"x.csv": "image,label\n" + CSV},
        TRAIN,
        "2 images without a class are not used (the first: '6.png')",
    ),
    (
        "rows too many",
        "1-5",
        {"x.csv": "image,label\n" + CSV + "9.png,cow\n8.png,cow\n"},
        TRAIN,
        "2 names of x.csv that no image has are passed over (the first: '9.png')",
    ),
    (
        "most missing",
        "1-20",
        {"x.csv": "image,label\n" + CSV},
        {"train": {None: 20}},
        "x.csv: labels of 5 of 20 images: not used",
    ),
    (
        "no name",
        "a/1-5",
        {"labels.csv": "image,label\nx1.png,cat\n"},
        {"train": {None: 5}},
        "1 name of labels.csv that no image has is passed over (the first: 'x1.png')",
    ),
    (
        "empty cells",
        "1-7",
        {"x.csv": "image,label\n" + CSV + "6.png,\n7.png\n"},
        TRAIN,
        "2 images without a class",
    ),
    (
        "readme",
        "cat/1-3 dog/1-2",
        {
            "README.txt": "hello there",
            "a.json": '{"a": 1}',
            "b.csv": "x,y,z\n1,2,3\n",
            "LICENSE": "BMW",
        },
        TRAIN,
        None,
    ),
    (
        "YOLO boxes",
        "images/cat/1-3 images/dog/1-2",
        {"labels/cat/1.txt": "0 0.5 0.5 1 1", "labels/cat/2.txt": "0 1"},
        TRAIN,
        None,
    ),
    (
        "broken json",
        "cat/1-3 dog/1-2",
        {"labels.json": "{"},
        TRAIN,
        "'labels.json' cannot be read (Expecting",
    ),
    (
        "deep json",
        "cat/1-3 dog/1-2",
        {"labels.json": "[" * 100_000},
        TRAIN,
        "'labels.json' cannot be read",
    ),
    (
        "long cell",
        "cat/1-3 dog/1-2",
        {"x.csv": "a,b\n" + "x" * 200_000 + ",1\n"},
        TRAIN,
        "'x.csv' cannot be read",
    ),
]


@pytest.mark.parametrize(
    "names, files, expected, words",
    [row[1:] for row in LABEL_FILES],
    ids=[row[0] for row in LABEL_FILES],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_label_files(here, kind, names, files, expected, words):
    source = opened(pack(here, kind, tree(names) | files))
    assert short_form(source) == expected
    assert (words or "") in source.unused and bool(words) == bool(source.unused)


def test_stats_count_what_is_held_out(here, capsys):
    write(here / "set", tree("train/cat/1-3 train/dog/1-2 test/cat/1 test/dog/1 test/cow/1"))
    assert main(["set", "--stats", "--size", "8"]) is None
    said = capsys.readouterr()
    assert "5 images to train on, 2 held out\n" in said.out
    assert "1 image of no class that is trained on is not used" in said.err


def test_each_image_has_the_label_of_its_row(here):
    order = list(range(40))
    np.random.default_rng(0).shuffle(order)
    rows = "".join(f"{k}.png,{'abc'[k % 3]}\n" for k in order)
    source = opened(pack(here, "zip", tree("train/0-19 train/20-39") | {"labels.csv": rows}))
    for name, label in zip(source.names, source.labels, strict=True):
        assert source.classes[label] == "abc"[int(Path(name).stem) % 3]


# ------------------------------------------------------------------------ what an image file is


def encoded(kind, **options):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 40)).save(data, kind, **options)
    return data.getvalue()


KINDS = {
    "a.jfif": "JPEG",
    "b.ppm": "PPM",
    "c.tga": "TGA",
    "d.jp2": "JPEG2000",
    "e.ico": "ICO",
    "f.AVIF": "AVIF",
    "g": "PNG",
    "h": "JPEG",
    "i": "WEBP",
    "j.001": "PNG",
    "k.qoi": "QOI",
    "l.jpe": "JPEG",
    "m.png": "BMP",
    "img v1.0 x": "GIF",
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_all_that_pillow_opens(here, kind):
    kinds = {name: fmt for name, fmt in KINDS.items() if fmt in Image.SAVE}
    files = {name: encoded(fmt) for name, fmt in kinds.items()}
    files |= {f"x/{k}.heic": b"abc" for k in range(5)} | {
        "y.mp4": b"",
        "Thumbs.db": b"",
        "z": b"x",
        "LICENSE": b"Py",
    }
    source = opened(pack(here, kind, files))
    assert source.names == sorted(kinds)
    for i in range(len(source.names)):
        assert abs(np.asarray(source.read(i).convert("RGB")).astype(int) - (200, 30, 40)).max() < 9
    lines = source.unused.splitlines()
    assert len(lines) == 2 and "y.mp4" in lines[1]
    assert "5 .heic files are not used: convert them (the first: 'x/0.heic')" in lines[0]


def test_no_program_reads_an_image(here):
    """PostScript would start Ghostscript, whatever the name says."""
    source = opened(
        write(
            here / "s",
            tree("1-3") | {"4.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"},
        )
    )
    with pytest.raises(OSError):
        source.read(3)


def test_an_endless_file_is_not_read_to_its_end(here, monkeypatch):
    with open(here / "x.png", "wb") as file:
        file.write(PNG[:40])
        file.truncate(10**13)
    monkeypatch.setattr(folders, "MAX_FILE", 10**5)
    with pytest.raises(ValueError, match="10000000000000 bytes"):
        opened(here).read(0).load()


posix = pytest.mark.skipif(os.name == "nt", reason="links and pipes are POSIX")


@posix
def test_links_are_followed(here):
    write(here / "elsewhere", tree("dogs/1-2 x.png"))
    root = write(here / "set", tree("cat/1-2"))
    (root / "dog").symlink_to(here / "elsewhere/dogs")
    (root / "cat/3.png").symlink_to(here / "elsewhere/x.png")
    assert short_form(opened(root)) == TRAIN and opened(root).unused == ""
    (root / "cat/again").symlink_to(root)
    (root / "cat/up").symlink_to(here)
    (root / "cat/lost.png").symlink_to(here / "nowhere.png")
    (root / "cat/self").symlink_to(root / "cat/self")
    source = opened(root)
    assert short_form(source) == TRAIN
    assert "2 links that cannot be followed are not used" in source.unused
    assert (
        "2 links to a folder that is read already are not used (the first: 'cat/again"
        in source.unused
    )
    assert source.unused.count("\n") == 1


@posix
def test_nothing_waits_for_a_pipe(here):
    os.mkfifo(here / "pipe")
    for path in ("pipe", "/dev/null"):
        with pytest.raises(InputError, match="is no folder and no regular file"):
            path_source(Path(path))
    root = write(here / "set", tree("cat/1-3 dog/1-2"))
    for name in ("cat/x.png", "cat/x", "labels.csv"):
        os.mkfifo(root / name)
    done = []
    thread = threading.Thread(target=lambda: done.append(opened(root)), daemon=True)
    thread.start()
    thread.join(20)
    assert short_form(done[0]) == TRAIN
    assert "3 special files (pipe, socket, device) are not used" in done[0].unused


def test_a_folder_that_cannot_be_read_is_named(here, monkeypatch):
    root = write(here / "set", tree("cat/1-3 dog/1-2"))
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="the folder '.*dog/?' cannot be read .Permission denied"):
        path_source(root)


def test_empty_folders_are_said(here):
    root = write(here / "set", tree("cat/1-3 dog/1-2"))
    (root / "cow").mkdir()
    assert "1 folder is empty (the first: 'cow/')" in opened(root).unused


@pytest.mark.parametrize(
    "files, words",
    [
        ({"a.tar": b"", "b.tar": b""}, "but 2 .tar files"),
        ({"x/train-0.parquet": b"", "README.md": b""}, "1 .parquet file"),
        ({"a.pt": b"", "b.npz": b""}, "1 .pt file, 1 .npz file"),
        ({"a.tfrecord": b""}, "1 .tfrecord file"),
        ({"a.heic": b""}, "1 .heic file"),
        ({}, "looked for .jpg"),
    ],
)
def test_a_folder_without_images(here, files, words):
    (here / "set").mkdir()
    with pytest.raises(InputError) as caught:
        opened(write(here / "set", files))
    assert str(caught.value).startswith("no images in '") and words in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# ------------------------------------------------------------------------------------- names


@pytest.mark.skipif(os.name == "nt", reason="names of bytes are POSIX")
def test_names_that_are_no_text(here):
    for folder in (b"caf\xe9", "cafe\u0301".encode(), "caf\u00e9".encode(), b"a\x1b[31m\nb"):
        os.makedirs(os.path.join(b"set\xff\n", folder))
        for k in (1, 2):
            with open(os.path.join(b"set\xff\n", folder, b"%d\xff\x07.png" % k), "wb") as file:
                file.write(PNG)
    path = Path(os.fsdecode(b"set\xff\n"))
    key, _, open_source = path_source(path)
    source = open_source()
    assert short_form(source) == {"train": {"a\\x1b[31m\\nb": 2, "caf\u00e9": 4, "caf\\udce9": 2}}
    for text in (key, sources.title(path), *source.names, *source.classes, source.unused):
        assert text.isprintable() and text.encode() is not None
    (path / os.fsdecode(b"x\x1b\xfe.heic")).write_bytes(b"")
    assert opened(path).unused.isprintable()


def test_different_names_stay_different(here):
    arrays = {"images": np.zeros((3, 8, 8), np.uint8), "labels": [0, 1, 2]}
    np.savez("x.npz", **arrays, classes=["a\x1b", "a\\x1b", "a\\x1b"])
    assert len(set(opened("x.npz").classes)) == 3


# ------------------------------------------------------------------------------------ arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
TESTS = IMAGES[:2, ::-1]
LABELS = np.array([0, 0, 0, 1, 1])
NUMBERED = {"train": {"0": 3, "1": 2}}
PARTS = {**NUMBERED, "test": {"0": 1, "1": 1}}

ARRAYS = [  # id, arrays, what comes out, words
    ("images", {"images": IMAGES, "labels": LABELS}, NUMBERED, None),
    (
        "keras",
        {"x_train": IMAGES, "y_train": LABELS, "x_test": TESTS, "y_test": [0, 1]},
        PARTS,
        None,
    ),
    ("X, Y", {"X_train": IMAGES, "Y_train": LABELS, "X_val": TESTS, "Y_val": [0, 1]}, PARTS, None),
    (
        "MedMNIST",
        {
            "train_images": IMAGES,
            "train_labels": LABELS[:, None],
            "val_images": IMAGES,
            "val_labels": LABELS[:, None],
            "test_images": TESTS,
            "test_labels": [[0], [1]],
        },
        PARTS,
        "2 arrays are not used (the first: 'val_images')",
    ),
    (
        "images_train",
        {
            "images_train": IMAGES,
            "labels_train": LABELS,
            "images_test": TESTS,
            "labels_test": [0, 1],
        },
        PARTS,
        None,
    ),
    ("train", {"train": IMAGES, "test": TESTS}, {"train": {None: 5}, "test": {None: 2}}, None),
    ("X, y", {"X": IMAGES, "y": LABELS}, NUMBERED, None),
    (
        "camel",
        {"trainX": IMAGES, "trainY": LABELS, "testX": TESTS, "testY": [0, 1]},
        PARTS,
        None,
    ),
    (
        "train_set_x",
        {
            "train_set_x": IMAGES,
            "train_set_y": LABELS,
            "test_set_x": TESTS,
            "test_set_y": [0, 1],
            "list_classes": np.array([b"cat", b"dog"]),
        },
        BOTH,
        None,
    ),
    ("data", {"data": IMAGES, "target": LABELS}, NUMBERED, None),
    ("arr_0", {"arr_0": IMAGES, "arr_1": LABELS}, NUMBERED, None),
    ("one-hot", {"x": IMAGES, "y": np.eye(2)[LABELS]}, NUMBERED, None),
    ("float", {"x": IMAGES, "y": LABELS.astype(np.float32)}, NUMBERED, None),
    ("strings", {"x": IMAGES, "y": np.array(["cat", "cat", "cat", "dog", "dog"])}, TRAIN, None),
    ("bytes", {"x": IMAGES, "y": np.array([b"cat", b"cat", b"cat", b"dog", b"dog"])}, TRAIN, None),
    ("classes", {"images": IMAGES, "labels": LABELS, "classes": ["cat", "dog"]}, TRAIN, None),
    (
        "one of the classes",
        {"images": IMAGES, "labels": LABELS * 0, "classes": ["cat", "dog"]},
        {"train": {"cat": 5}},
        None,
    ),
    (
        "names of classes that collide",
        {"images": IMAGES, "labels": [0, 1, 1, 2, 2], "classes": ["a (2)", "a", "a"]},
        {"train": {"a (2)": 1, "a": 2, "a (2) (2)": 2}},
        None,
    ),
    ("gap", {"images": IMAGES, "labels": LABELS * 9 + 1}, {"train": {"1": 3, "10": 2}}, None),
    (
        "huge label",
        {"images": IMAGES, "labels": LABELS.astype(np.uint64) * (2**64 - 1)},
        {"train": {"0": 3, str(2**64 - 1): 2}},
        None,
    ),
    (
        "split",
        {"images": IMAGES, "labels": [0, 0, 1, 0, 1], "split": [0, 0, 0, 1, 1]},
        {"train": {"0": 2, "1": 1}, "test": {"0": 1, "1": 1}},
        None,
    ),
    (
        "new class",
        {"x_train": IMAGES, "y_train": LABELS, "x_test": TESTS, "y_test": [0, 7]},
        {**NUMBERED, "test": {"0": 1}},
        "1 image of no class",
    ),
    (
        "test without labels",
        {"x_train": IMAGES, "y_train": LABELS, "x_test": TESTS},
        NUMBERED,
        "2 images of no class",
    ),
    (
        "other",
        {"images": IMAGES, "depth": IMAGES, "ids": np.array([object()] * 5)},
        {"train": {None: 5}},
        "2 arrays are not used (the first: 'depth')",
    ),
    ("alone", {"images": IMAGES[:1]}, {"train": {None: 1}}, None),
]


@pytest.mark.parametrize(
    "arrays, expected, words", [row[1:] for row in ARRAYS], ids=[row[0] for row in ARRAYS]
)
def test_arrays(here, arrays, expected, words):
    np.savez("x.npz", **arrays)
    source = opened("x.npz")
    assert short_form(source) == expected
    assert (words or "") in source.unused and bool(words) == bool(source.unused)
    images = [np.asarray(source.read(i)) for i in range(len(source.names))]
    assert np.array_equal(images[: len(IMAGES)], IMAGES[: len(images)])
    if len(images) > 5:
        assert np.array_equal(images[5:], TESTS[: len(images) - 5])


def test_a_bare_array(here):
    np.save("x.npy", IMAGES)
    source = opened("x.npy")
    assert len(source.names) == 5 and np.array_equal(np.asarray(source.read(4)), IMAGES[4])
    np.save("x.npy", IMAGES[..., 0] / 2)
    with pytest.raises(InputError, match="must be uint8"):
        opened("x.npy")


WHOLE = "'labels' in 'x.npz' must be 5 whole numbers"


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"images": IMAGES[:, :0]}, "must be uint8"),
        ({"images": IMAGES[:0]}, "must be uint8"),
        ({"images": IMAGES, "labels": [0.5] * 5}, WHOLE),
        ({"images": IMAGES, "labels": [np.nan] * 5}, WHOLE),
        ({"images": IMAGES, "labels": [1e300] * 5}, WHOLE),
        ({"images": IMAGES, "labels": [[0, 2]] * 5}, WHOLE),
        ({"images": IMAGES, "labels": [[1, 1]] * 5}, WHOLE),
        ({"images": IMAGES, "labels": LABELS[None, None]}, WHOLE),
        ({"images": IMAGES, "labels": 3}, WHOLE),
        ({"images": IMAGES, "labels": LABELS - 1}, WHOLE),
        (
            {"images": IMAGES, "split": np.full(5, 2**64 - 1, np.uint64)},
            "'split' in 'x.npz' must be 5",
        ),
        ({"images": IMAGES, "split": [0, 1, 1, 0]}, "'split' in 'x.npz' must be 5"),
        ({"images": IMAGES, "split": [-1, 1, 1, 0, 0]}, "'split' in 'x.npz' must be 5"),
        (
            {"images": IMAGES, "labels": LABELS, "classes": ["a"]},
            "go up to 1, but there are 1 classes",
        ),
        ({"x_test": IMAGES[..., 0, 0]}, "no array 'images' (it has: x_test)"),
        ({}, "no array 'images' (it has: nothing)"),
    ],
)
def test_arrays_that_are_refused(here, arrays, words):
    np.savez("x.npz", **arrays)
    with pytest.raises(InputError) as caught:
        opened("x.npz")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"images": IMAGES, "labels": [3, 0, -1, -2, 1]}, "they go from -2 (index 3) to 3"),
        ({"images": IMAGES, "labels": [0, 0, 0.5, 2, 1]}, "they go from 0.0 (index 0) to 2.0"),
        ({"images": IMAGES, "labels": [0, 1, np.nan, 2, 1]}, "they go from nan (index 2)"),
        ({"images": IMAGES, "labels": np.array([1, "a"] * 2 + [2], object)}, "Python objects"),
        ({"images": IMAGES, "split": [0, 1, 0, 7, 1]}, "they go from 0 (index 0) to 7"),
        ({"images": IMAGES[:0]}, "with at least one image, not uint8 (0, "),
        ({"images": IMAGES / 255}, "; use np.uint8(255 * x + 0.5) if 1 is white, np.uint8(x) if"),
        ({"images": IMAGES > 99}, "; use np.uint8(255 * x + 0.5) if 1 is white, np.uint8(x) if"),
        ({"images": IMAGES.astype(int)}, "np.uint8(x) if 255 is"),
        ({"images": np.array([None] * 4)}, "Python objects, such as images of different sizes"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "another format"),
    ],
)
def test_arrays_that_are_refused_say_why(here, arrays, words):
    if isinstance(arrays, bytes):
        Path("x.npz").write_bytes(arrays)
    else:
        np.savez("x.npz", **arrays)
    with pytest.raises(InputError) as caught:
        opened("x.npz")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "pickle" not in str(caught.value) and "tuple index" not in str(caught.value)


def test_the_advice_for_arrays_gives_the_same_images(here):
    x = np.arange(256, dtype=np.float32).reshape(1, 16, 16) / 255
    assert np.array_equal(np.uint8(255 * x + 0.5).ravel(), np.arange(256))


def header(shape, descr="|u1"):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        data, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return data.getvalue()


def test_headers_are_checked_before_memory_is_spent(here, monkeypatch):
    def npz(**members):
        with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)
        return "x.npz"

    good = header((2, 8, 8)) + bytes(128)
    for members in (
        {"images": header((10**12, 8, 8)) + bytes(100)},
        {"images": header((-2, 8, 8)) + bytes(100)},
        {"images": good, "labels": header((10**15,), "<i8")},
        {"images": b"\x93NUMPY\x09\x09"},
        {"images": b""},
    ):
        with pytest.raises(InputError, match="not a readable .npz"):
            opened(npz(**members))
    with pytest.raises(InputError, match="'labels' in 'x.npz' must be 2 whole numbers"):
        opened(npz(images=good, labels=header((10**6,), "<i8") + bytes(8 * 10**6)))
    reads = []
    read = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda *given: reads.append(given[1]) or read(*given)
    )
    opened(npz(images=good, bomb=header((10**8,)) + bytes(10**8)))
    assert reads == ["images"]
    monkeypatch.setattr(sources, "memory", lambda: 100)
    with pytest.raises(InputError, match="'images' in 'x.npz' must fit in memory"):
        opened(npz(images=good))


# ---------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_archives_of_several_files_with_one_name(here, kind):
    blue = encoded("PNG") + b"later"
    path = here / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning):
            for content in (b"first", blue):
                archive.writestr("a.png", content)
    else:
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
            for content in (b"first", blue):
                info = tarfile.TarInfo("a.png")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("b.png")
            link.type = tarfile.SYMTYPE
            link.linkname = "/etc/passwd"
            archive.addfile(link)
    source = opened(path)
    assert source.names == ["a.png"] and source.read(0).size == (8, 8)
    assert (
        "1 name is there more than once: the last file counts (the first: 'a.png')" in source.unused
    )
    assert (
        kind == "zip"
        or "1 special file (link, device, sparse) is not used (the first: 'b.png')" in source.unused
    )


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name",
    ["../../e.png", "..\\e.png", "a/../../e.png", "/../e.png", "C:\\..\\e.png"],
)
def test_names_that_lead_out_of_an_archive(here, kind, name):
    """Such a folder is no class, and the line counts files only."""
    path = here / f"x.{kind}"
    names = [*tree("cat/1-3 dog/1-2"), name]
    names += [name[:-5]] if name[-6] in "/\\" else []
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in names:
                archive.writestr(zipfile.ZipInfo(file), PNG)
    else:
        with tarfile.open(path, "w") as archive:
            for file in names:
                info = tarfile.TarInfo(file)
                info.type = tarfile.REGTYPE if file.endswith("png") else tarfile.DIRTYPE
                info.size = len(PNG) if file.endswith("png") else 0
                archive.addfile(info, io.BytesIO(PNG))
    source = opened(path)
    assert short_form(source) == TRAIN
    words = "1 file outside the archive's own folder is not used"
    assert source.unused == f"{path}: {words} (the first: '{name}')"


def test_absolute_names_in_an_archive(here):
    """The drive and the first slashes are dropped, as unzip and tar do."""
    names = ["C:\\cat\\1.png", "c:/cat/2.png", "/cat/3.png", "\\dog\\1.png", "//dog/2.png"]
    with zipfile.ZipFile("x.zip", "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), PNG)
    source = opened("x.zip")
    assert short_form(source) == TRAIN and not source.unused


def zip_bytes(**changes):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.png", PNG)
    return bytearray(data.getvalue())


def test_archives_that_are_refused(here):
    start = zip_bytes().index(b"PK\x01\x02")
    encrypted, version, name = zip_bytes(), zip_bytes(), zip_bytes()
    encrypted[start + 8] |= 1
    version[start + 6 : start + 8] = struct.pack("<H", 990)
    name[start + 9] |= 8  # the name is UTF-8 ...
    name[start + 46] = 0xFF  # ... and is not
    for data, words in (
        (encrypted, "is encrypted"),
        (version, "not a readable zip"),
        (name, "not a readable zip"),
    ):
        Path("x.zip").write_bytes(data)
        with pytest.raises(InputError, match=words) as caught:
            opened("x.zip")
        assert "\n" not in str(caught.value)
    whole = pack(here, "tar", tree("cat/1-3 dog/1-2")).read_bytes()
    packed = pack(here, "tgz", tree("cat/1-3 dog/1-2")).read_bytes()
    second = whole.index(b"./cat/2.png")
    damaged = bytearray(whole)
    damaged[second + 150] ^= 0xFF  # its checksum
    for suffix, data in (
        ("tar", whole[: second + 100]),
        ("tar", whole[: second + 513]),
        ("tar", damaged),
        ("tar", b""),
        ("tar", b"hello" * 1000),
        ("tgz", packed[: len(packed) // 2]),
        ("tar.xz", packed),
        ("tar.gz", b"\x1f\x8bnonsense"),
    ):
        path = here / f"bad.{suffix}"
        path.write_bytes(data)
        if suffix == "tar.xz":
            assert short_form(opened(path)) == TRAIN  # the first bytes count
            continue
        with pytest.raises(InputError, match="bad.* is not a readable tar file") as caught:
            opened(path)
        assert "\n" not in str(caught.value)
    (here / "bad.tar").write_bytes(whole[:second])
    assert "no end mark: it may be cut short" in opened(here / "bad.tar").unused
    for name in ("x.rar", "x.7z", "x.h5"):
        Path(name).write_bytes(b"Rar!")
        with pytest.raises(
            InputError, match="is no folder, zip or .npz file, and no tar: unpack or convert it"
        ):
            opened(name)
    for name in ("x.png", "X.JPG"):
        Path(name).write_bytes(PNG)
        with pytest.raises(InputError, match="is a single image: give the folder that it is in"):
            opened(name)


@pytest.mark.parametrize(
    "kind, name",
    [("zip", "x.tar"), ("tar", "x.zip"), ("tgz", "x.gz"), ("tar", "x"), ("zip", "x.jpg")],
)
def test_archives_with_another_suffix(here, kind, name):
    os.rename(pack(here, kind, tree("cat/1-3 dog/1-2")), name)
    assert short_form(opened(name)) == TRAIN


@pytest.mark.parametrize("kind", ["tgz", "tar.bz2", "tar.xz"])
def test_a_tar_that_unpacks_to_too_much(here, kind, monkeypatch):
    path = here / f"x.{kind}"
    with tarfile.open(path, {"tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[kind]) as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 10**7
        archive.addfile(info, io.BytesIO(bytes(10**7)))
    monkeypatch.setattr(folders, "MAX_FILE", 10**6)
    source = opened(path)
    with pytest.raises(ValueError, match="10000000 bytes unpacked"):
        source.read(0)
    monkeypatch.setattr(folders, "MAX_UNPACKED", 10**6)
    folders.plain_tar.cache_clear()
    with pytest.raises(InputError, match="unpacks to more than 0.0 GB"):
        opened(path)


def test_the_stamp_sees_label_files(here):
    root = write(here / "set", tree("1-5") | {"labels.csv": CSV, "notes.md": "x"})

    def stamp():
        return path_source(root)[1]

    first = stamp()
    (root / "notes.md").write_text("y")
    assert stamp() == first
    (root / "labels.csv").write_text(CSV + "6.png,cow\n")
    assert stamp() != first


def test_many_files_take_a_moment(here):
    """No file is opened before it is needed."""
    files = {f"{name}/{k}.png": b"" for name in ("cat", "dog") for k in range(500)}
    root = write(here / "set", files)
    assert len(opened(root).names) == 1000 and opened(root).unused == ""
