// Models by the name that they have on the Hugging Face Hub, where its tools have left them on this
// machine. Nothing is ever downloaded.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace ferry {

/// `model` itself where there is something of that name; else, where it reads as a name of the Hub
/// ("org/name"), the directory of the snapshot that branch main stands at in the local cache, or of
/// the only snapshot. The cache lies where huggingface_hub has it: HF_HUB_CACHE, else HF_HOME/hub,
/// else XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub. Throws ModelError that says
/// where it looked, and how the model gets there.
std::filesystem::path find_model(std::string_view model);

/// What people call the model in a directory: "org/name" for a snapshot of the cache, else the
/// directory's own name.
std::string model_name(const std::filesystem::path& directory);

}  // namespace ferry
