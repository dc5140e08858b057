"""Vision transformers that no statement describes, each with the reason of its mathematics."""

from secateur.models.checks.refused import refuse

TIMM, HF = "timm.models.", "transformers.models."

REDUCED = (
    "its keys and values are read through a strided convolution of the tokens and a norm of its "
    "own, so that what an attention layer reads of the stream is not one linear map"
)
POOLED = (
    "the first block of a stage pools its queries and its shortcut, so that its update is not "
    "added to the stream that it reads"
)
CONVOLVED = (
    "convolutions stand on its stream between attention layers and MLPs, with shortcuts that are "
    "pooled or projected"
)
TALKING = "talking heads mix the logits of all heads by matrices, so that no head goes by itself"
COSINE = (
    "its attention compares the directions of queries and keys, and a network of coordinates gives "
    "its position biases"
)
IN_A_LAYER = "its windows are cut inside a function that computes past the modules of a layer"

refuse(
    {
        f"{TIMM}swin_transformer_v2:SwinTransformerV2": COSINE,
        f"{TIMM}swin_transformer_v2_cr:SwinTransformerV2Cr": f"{COSINE}; norms stand on its stream",
        f"{TIMM}pvt_v2:PyramidVisionTransformerV2": REDUCED,
        f"{TIMM}twins:Twins": REDUCED,
        f"{TIMM}nest:Nest": CONVOLVED,
        f"{TIMM}maxxvit:MaxxVit": CONVOLVED,
        f"{TIMM}coat:CoaT": CONVOLVED,
        f"{TIMM}fastvit:FastVit": (
            "its MLPs begin with a convolution over neighbouring tokens, and its blocks have "
            "several branches in training that are one afterwards"
        ),
        f"{TIMM}metaformer:MetaFormer": (
            "its shortcuts are scaled, so that constants of the stream change from block to block"
        ),
        f"{TIMM}levit:Levit": (
            "an activation stands between its values and their projection, and its stages begin "
            "with attention that is added to no stream"
        ),
        f"{TIMM}efficientformer_v2:EfficientFormerV2": TALKING,
        f"{TIMM}cait:Cait": TALKING,
        f"{TIMM}xcit:Xcit": (
            "it attends over channels instead of tokens, so that dims of keys and values are one, "
            "and its last layers replace the stream by a norm of it"
        ),
        f"{TIMM}hiera:Hiera": POOLED,
        f"{TIMM}hieradet_sam2:HieraDet": POOLED,
        f"{TIMM}mvitv2:MultiScaleVit": (
            "pooled queries are added to its attention's outputs, so that dims of queries and "
            "values are one"
        ),
        f"{TIMM}volo:VOLO": (
            "its outlook attention takes its weights from a linear map of each token, without "
            "queries and keys"
        ),
        f"{TIMM}tiny_vit:TinyVit": (
            "a convolution without a shortcut stands between its attention and its MLP, so that "
            "the stream ends within each block"
        ),
        f"{TIMM}naflexvit:NaFlexVit": "its images are sequences of different lengths with a mask",
        "torchvision.models.swin_transformer:SwinTransformer": IN_A_LAYER,
        "torchvision.models.maxvit:MaxVit": CONVOLVED,
        f"{HF}swin.modeling_swin:SwinPreTrainedModel": IN_A_LAYER,
        f"{HF}swinv2.modeling_swinv2:Swinv2PreTrainedModel": COSINE,
        f"{HF}segformer.modeling_segformer:SegformerPreTrainedModel": REDUCED,
        f"{HF}pvt.modeling_pvt:PvtPreTrainedModel": REDUCED,
        f"{HF}pvt_v2.modeling_pvt_v2:PvtV2PreTrainedModel": REDUCED,
        f"{HF}hiera.modeling_hiera:HieraPreTrainedModel": POOLED,
    }
)
