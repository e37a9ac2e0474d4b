// A model that lives in its caller's process: prompts in, tokens out, without a server. For
// libraries and bindings; includes nothing of others.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ferry/export.h"
#include "ferry/generation_settings.h"

namespace ferry {

/// How a Generator holds and runs its model; names are those of the program's flags.
struct GeneratorOptions {
  std::string model;      ///< checkpoint directory, or "org/name" in the local Hugging Face cache
  int ranks = 0;          ///< that experts are spread over, as threads; 0: as tp, or one for
                          ///< each NUMA node
  int tp = 1;             ///< ranks that share out attention and dense layers; divides ranks
  int expert_slices = 1;  ///< ranks that share out each expert's columns; divides tp
  /// Where routed experts are: "cpu", "cuda:N" (that GPU's memory, with numerics = "fast"), or
  /// "cuda": each rank has the next GPU of its host.
  std::string experts_device = "cpu";
  int threads = 0;      ///< of each rank; 0: cores / ranks
  std::string weights;  ///< "f32", "bf16", "int8", "fp8", "int4", "mxfp4"; empty: as stored
  /// "read": weights are copied into memory of this process. "mapped": those of a packed checkpoint
  /// stay in its file, so that programs share them and none waits for them (docs/checkpoints.md).
  std::string load = "read";
  /// "auto": rows meet weights as the weights' format asks for. "int8": they are rounded to 8 bits
  /// where weights are GGUF's blocks or mxfp4, as llama.cpp does it; the log says where.
  std::string activations = "auto";
  /// Keys and values are kept as "auto" (as activations), "f32", "bf16", "int8", "fp8_e4m3".
  std::string kv_type = "auto";
  /// "exact": the same bits on every machine. "fast": the machine's dot products of bf16, in an
  /// order of their own, where it has them (docs/numerics.md, "The class fast"); the log says so.
  std::string numerics = "exact";
  std::string backend = "pplx";     ///< how tokens travel to experts
  int max_context = 0;              ///< positions of a sequence; 0: the model's
  int max_tokens_per_step = 512;    ///< of a group of tp ranks; longer prompts are cut
  int max_sequences_per_rank = 16;  ///< that run at once on such a group
  int max_waiting = 0;              ///< requests beside those; 0: any number
  /// Tokens that may come next run beside a text's one token: at most so many (0: none). The same
  /// bytes in fewer steps. They come, by draft_method, out of the text itself ("ngram"), where its
  /// newest draft_ngram_min tokens stand earlier in it, or of the checkpoint's layer that predicts
  /// further tokens ("mtp").
  int draft_tokens = 0;
  std::string draft_method = "ngram";
  int draft_ngram_min = 2;
  int draft_ngram_max = 8;          ///< more of the newest tokens are not compared
  double kv_memory_fraction = 0.8;  ///< of the memory beside the weights, for keys and values
  /// Takes lines that whoever runs this should read, such as the choice behind "auto", from any
  /// thread. May be empty; nothing is printed.
  std::function<void(const std::string& line)> log;
};

/// A token of a running call, as it comes.
struct GeneratedToken {
  std::size_t choice = 0;  ///< of prompt p: p * settings.choices and those behind it
  std::int32_t id = 0;
  std::string text;                  ///< what the choice's text has grown by; may be empty
  std::optional<Logprobs> logprobs;  ///< where asked for
  std::string finish;                ///< with the last one: "stop" or "length"
};

/// Owns the model and the threads that run it: one for each rank and those of their pools. They
/// sleep while there is nothing to do. Calls from any thread, several at once, share the steps;
/// tokens do not depend on what else runs (backends that combine per expert, docs/numerics.md).
///
/// Errors: ConfigError for what cannot be asked for, ModelError for a checkpoint that is missing or
/// damaged, Refused where the same may succeed later or the model has ended; each one line.
class FERRY_API Generator {
 public:
  using Prompts = std::vector<std::vector<std::int32_t>>;  ///< ids of each

  /// Returns when the model is loaded and runs. Throws what keeps it from that.
  explicit Generator(const GeneratorOptions& options);
  /// As close().
  ~Generator();
  Generator(Generator&&) noexcept;
  Generator& operator=(Generator&&) noexcept;

  /// A running call. Destroying it cancels what is not done. May outlive its Generator, and then
  /// throws Refused. Threads: one at a time, any.
  class FERRY_API Stream {
   public:
    ~Stream();
    Stream(Stream&&) noexcept;
    Stream& operator=(Stream&&) noexcept;

    /// The next token of any choice. None when `patience` is over, or all choices are done. Throws
    /// Refused when the model ends before they are.
    std::optional<GeneratedToken> next(std::chrono::milliseconds patience);

    bool done() const;

    /// This choice gets no further token.
    void cancel(std::size_t choice);

    /// All of them, as far as they have come.
    const std::vector<Choice>& choices() const;

   private:
    friend class Generator;
    class Impl;
    explicit Stream(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
  };

  /// Starts continuations of all prompts, or of none. Does not wait.
  Stream start(const Prompts& prompts, const GenerationSettings& settings = {});

  /// The same to the end. `on_token`, if given, is called on this thread; what it throws cancels
  /// the call and leaves here.
  std::vector<Choice> generate(const Prompts& prompts,
                               const GenerationSettings& settings = {},
                               const std::function<void(const GeneratedToken&)>& on_token = {});

  /// The ids of a text, with the special tokens that the model wants around it. Throws ModelError
  /// where the checkpoint has no tokenizer.
  std::vector<std::int32_t> encode(const std::string& text) const;
  /// The text of ids, without special tokens. Throws likewise.
  std::string decode(std::span<const std::int32_t> ids) const;

  /// The ids of a conversation as the model's chat template puts it. `request`: a JSON object with
  /// what POST /v1/chat/completions has of this (docs/serving.md): messages, tools,
  /// chat_template_kwargs, reasoning_effort, documents, add_generation_prompt,
  /// continue_final_message. Throws ConfigError for another member, for what the template refuses,
  /// and where the model has no template.
  std::vector<std::int32_t> encode_chat(const std::string& request) const;

  /// Changes settings by the members of a JSON object, as POST /v1/completions has them
  /// (docs/serving.md): how to sample and when to stop, penalties and biases, and what the text
  /// must match. Throws ConfigError for what is out of range, and for another member.
  void read_settings(const std::string& members, GenerationSettings& settings) const;

  int vocab() const;
  int max_context() const;

  /// Ends running calls, which throw Refused from then on, and all threads; waits for these. A
  /// second call does nothing. Not from within on_token.
  void close();

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // also owned by streams, which borrow the model
};

}  // namespace ferry
