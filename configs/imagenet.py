"""ImageNet (ILSVRC 2012): evaluate any set of weights on its validation pictures, or fine-tune from it.

  python -m tlx.main --config=configs/imagenet.py --mode=evaluate --config.model.name=resnet50.tv2_in1k
  python -m tlx.main --config=configs/imagenet.py --mode=evaluate --config.model.name=vit_base_patch16_224.augreg_in21k_ft_in1k \
      --config.data.source=folder --config.data.root=DIR
  python -m tlx.main --config=configs/imagenet.py

`python -m tlx.models` lists the weights with the accuracy that their authors published; the summary shows it beside what was
measured. The first command reads tfds' imagenet2012 (prepared from the archives of image-net.org, which want to be asked), the
second a folder DIR/val/n01440764/*.JPEG with WordNet ids as class names. No pictures of any other split are needed to evaluate.

Pictures of a few of a network's own classes are judged by those classes' logits alone, without training:

  python -m tlx.main --config=configs/imagenet.py --mode=evaluate --config.model.name=squeezenet1_0.tv_in1k \
      --config.data.source=folder --config.data.root=DIR --config.data.class_subset=ants=310,bees=309

tells the ants from the bees of the hymenoptera pictures: 141 of 153 (PyTorch: the same); 5 s on 2 CPU cores.
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet50.tv2_in1k"
    config.data.source = "tfds:imagenet2012"
    config.data.augment = ("random_resized_crop:0.35", "flip")
    config.data.workers = 8
    config.tune.method = "full"
    config.optimizer.name = "sgd"
    config.optimizer.options = "momentum=0.9,nesterov=True"
    config.optimizer.lr = 0.01
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "1ep"
    config.train.epochs = 10.0
    config.train.batch_size = 256
    config.train.label_smoothing = 0.1
    config.eval.batch_size = 64
    return config
