"""Small networks of every family that both engines must compute alike."""

from kiloq.model.config import ModelConfig

TINY = dict(vocab_size=97, hidden_size=48, num_layers=3, num_heads=6, ffn_size=80, train_length=16, max_length=256)
SHAPES = {
    "qwen1": ModelConfig(**TINY, dynamic_ntk=True, logn=True),
    "qwen2": ModelConfig(**TINY, num_kv_heads=2, tied_embeddings=True, rope_base=1e6),
    "qwen3": ModelConfig(**TINY, num_kv_heads=3, head_dim=16, qk_norm=True, qkv_bias=False, norm_eps=1e-5),
    "llama": ModelConfig(**TINY, num_kv_heads=1, qkv_bias=False, tied_embeddings=True),
    "biased": ModelConfig(**TINY, output_bias=True, mlp_bias=True, rotary_dim=4),
    "windows": ModelConfig(**TINY, windows=(4, 9, None), dynamic_ntk=True, logn=True),
}
