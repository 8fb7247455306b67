import numpy as np
from PIL import Image

from mlcore.mnist.metrics import accuracy_of, by_class, confusion_matrix, write_confusion_csv, write_confusion_png

LABELS = np.array([0, 0, 0, 1, 1, 2])
ANSWERS = np.array([0, 0, 1, 1, 1, 0])
NAMES = ("cat", "dog", "ant, red")


def test_rows_are_labels_and_columns_answers():
    confusion = confusion_matrix(LABELS, ANSWERS, 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert accuracy_of(confusion) == 4 / 6


def test_table_by_class():
    cat, dog, ant = by_class(confusion_matrix(LABELS, ANSWERS, 3), NAMES)
    assert (cat.examples, cat.precision, cat.recall, cat.most_taken_for) == (3, 2 / 3, 2 / 3, "dog")
    assert (dog.precision, dog.recall, dog.f1, dog.most_taken_for) == (2 / 3, 1.0, 0.8, "")
    assert (ant.precision, ant.recall, ant.f1, ant.most_taken_for) == (0.0, 0.0, 0.0, "cat")


def test_confusion_is_written_as_csv_and_picture(tmp_path):
    confusion = confusion_matrix(LABELS, ANSWERS, 3)
    write_confusion_csv(tmp_path / "c.csv", confusion, NAMES)
    write_confusion_png(tmp_path / "c.png", confusion, NAMES)
    assert (tmp_path / "c.csv").read_text() == ('label,cat,dog,"ant, red"\ncat,2,1,0\ndog,0,2,0\n"ant, red",1,0,0\n')
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width == picture.height > 3 * 44
        assert len(picture.convert("RGB").getcolors(10_000)) > 4
