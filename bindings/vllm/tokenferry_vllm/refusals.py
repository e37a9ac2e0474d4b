"""What this would get silently wrong, or nobody has tried, by the name that vLLM has for it."""


def refuse(what, instead):
    raise NotImplementedError(f"tokenferry-vllm: {what}; {instead}")


def check_config(moe):
    """A layer's FusedMoEConfig, which asks for expert parallelism."""
    parallel = moe.moe_parallel_config
    if parallel.enable_eplb or moe.num_experts != moe.num_logical_experts:
        refuse("--enable-eplb moves experts while they are in use", "leave it out")
    if parallel.all2all_backend != "allgather_reducescatter":
        refuse(
            f"--all2all-backend {parallel.all2all_backend} is not for CPUs",
            "leave it out: the plug-in takes the place of allgather_reducescatter",
        )
    if parallel.pcp_size > 1:
        refuse("--prefill-context-parallel-size has not been tried with it", "leave it out")
    if moe.is_lora_enabled:
        refuse("experts with LoRA read their tokens' adapters beside the tokens", "leave --enable-lora out")


def check_method(method, exchanging):
    """The quant method of a layer that asks for expert parallelism."""
    if not isinstance(method, exchanging):
        refuse(
            f"expert parallelism of {type(method).__name__} is not supported: vLLM's CPU kernels would take "
            f"other ranks' experts for their own",
            "use a model whose experts are not quantised, or leave --enable-expert-parallel out",
        )


def check_experts_map(expert_map, held):
    """vLLM's map from experts to local ones must be the linear one, `held` on this rank."""
    if expert_map is None:
        refuse("a layer has no expert map although ranks share its experts", "report this model")
    wanted = [-1] * len(expert_map)
    for place, expert in enumerate(held):
        wanted[expert] = place
    if [int(place) for place in expert_map] != wanted:
        refuse("experts do not lie in order", "leave --expert-placement-strategy out")


def check_copies(ep_rank, tp_rank, tp_size):
    if ep_rank % tp_size != tp_rank:
        refuse(
            f"expert-parallel rank {ep_rank} is tensor-parallel rank {tp_rank} of {tp_size}",
            "ranks with the same tokens must be next to each other",
        )


def check_kernel(experts):
    if getattr(experts, "_use_zentorch", False):
        refuse("zentorch's experts have not been tried with it", "uninstall zentorch")
