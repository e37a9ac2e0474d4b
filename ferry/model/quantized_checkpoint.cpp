#include "ferry/model/quantized_checkpoint.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ferry/checkpoint/new_directory.h"
#include "ferry/checkpoint/pack_stored.h"
#include "ferry/checkpoint/safetensors_writer.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "ferry/model/checkpoint_texts.h"
#include "ferry/model/family.h"

namespace ferry {

namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

WrittenFormat format_to_write(WeightType type) {
  WrittenFormat written = written_format(type);
  if (written.format == nullptr) {
    fail<ConfigError>("--weights {}: not quantised; choose int8, fp8, int4 or mxfp4",
                      weight_type_name(type));
  }
  return written;
}

/// One tensor of the source, and what is written for it.
struct Item {
  TensorSpec spec;
  bool quantised = false;
  std::vector<TensorHeader> headers;

  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const TensorHeader& header : headers) sum += header.bytes();
    return sum;
  }
};

/// Matrices that products read, also those of experts that the source has stacked: each becomes a
/// tensor of its own. The gate of a shared expert, one row, is held as f32. What a mixer packs in a
/// way of its own is quantised along that way, which only whole elements allow.
bool is_quantised(const TensorSpec& spec, const TensorNames& names) {
  if (spec.shape.size() != 2 || spec.shape[0] == 1) return false;
  return spec.role == TensorRole::matrix || spec.role == TensorRole::expert ||
         spec.name == tensor_name(names, names.lm_head);
}

/// Scales of mxfp4 as files have them.
std::vector<std::byte> exponents_of(std::span<const float> scales) {
  std::vector<std::byte> exponents;
  for (const float scale : scales) exponents.push_back(std::byte{power_exponent(scale)});
  return exponents;
}

class Writer {
 public:
  Writer(const Checkpoint& source,
         const QuantizeOptions& options,
         ThreadPool& pool,
         const LoadProgress& progress)
      : source_(source),
        options_(options),
        format_(format_to_write(options.type)),
        pool_(pool),
        progress_(progress) {
    for_each_tensor(unstacked(source.config()), [&](const TensorSpec& spec) {
      total_ += source.stored_bytes(spec);
      plan(spec, spec.name, is_quantised(spec, source.names()));
      // The head of a model without one: products read it quantised, and rows of tokens do not.
      if (is_head_too(spec)) {
        total_ += source.stored_bytes(spec);
        plan(spec, tensor_name(source.names(), source.names().lm_head), /*quantised=*/true);
      }
    });
  }

  void write(const fs::path& out) {
    NewDirectory files(out);
    std::uint64_t bytes = 0;
    for (const auto& shard : shards_)
      for (const Item& item : shard) bytes += item.bytes();
    files.require_space(bytes);
    json weight_map = json::object();
    for (std::size_t s = 0; s < shards_.size(); ++s) {
      const std::string name =
          shards_.size() == 1
              ? "model.safetensors"
              : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards_.size());
      write_shard(shards_[s], files.add(name));
      for (const Item& item : shards_[s])
        for (const TensorHeader& header : item.headers) weight_map[header.name] = name;
    }
    if (shards_.size() > 1) {
      const json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", weight_map}};
      files.add_text("model.safetensors.index.json", index.dump(2));
    }
    write_texts(source_, config(), files);
    files.finish();
  }

 private:
  bool is_head_too(const TensorSpec& spec) const {
    const TensorNames& names = source_.names();
    return source_.config().tied_embeddings && spec.name == tensor_name(names, names.embedding);
  }

  void plan(const TensorSpec& spec, const std::string& name, bool quantised) {
    Item item{.spec = spec, .quantised = quantised, .headers = {}};
    if (quantised) {
      const MatrixPlace place{.name = name, .rows = spec.shape[0], .columns = spec.shape[1]};
      for (StoredPart& part : format_.format->parts(source_.source(), place)) {
        item.headers.push_back(
            {.name = std::move(part.name), .shape = std::move(part.shape), .codes = part.type});
      }
    } else {
      item.headers = {{name, plain_type(spec), spec.shape}};
    }
    const std::uint64_t more = item.bytes();
    if (shards_.empty() || shard_bytes_ + more > options_.max_shard_bytes) {
      shards_.emplace_back();
      shard_bytes_ = 0;
    }
    shard_bytes_ += more;
    shards_.back().push_back(std::move(item));
  }

  /// Of what is not quantised here. Quantised in the source, it becomes bf16, or what no bit is
  /// lost in where it is yet to be quantised.
  DType plain_type(const TensorSpec& spec) const {
    const StoredMatrix matrix = source_.matrix(spec);
    if (matrix.is_plain()) return matrix.dtype;
    return spec.role == TensorRole::own_way ? DType::f32 : DType::bf16;
  }

  void write_shard(const std::vector<Item>& items, const fs::path& path) {
    std::vector<TensorHeader> headers;
    for (const Item& item : items)
      headers.insert(headers.end(), item.headers.begin(), item.headers.end());
    SafetensorsWriter writer(path, headers);
    for (const Item& item : items) {
      write_item(item, writer);
      done_ += source_.stored_bytes(item.spec);
      if (progress_) progress_(done_, total_);
    }
    writer.close();
  }

  void write_item(const Item& item, SafetensorsWriter& writer) const {
    const StoredMatrix matrix = source_.matrix(item.spec);
    if (item.quantised) {
      const QuantizedMatrix quantised = quantize_stored(matrix, options_.type, pool_);
      writer.write(quantised.codes);
      if (options_.type == WeightType::mxfp4)
        writer.write(exponents_of(quantised.scales));
      else
        writer.write(std::as_bytes(std::span(quantised.scales)));
    } else if (matrix.is_plain() && matrix.row_after_row()) {
      writer.write(matrix.data);
    } else {
      const DType type = plain_type(item.spec);
      std::vector<std::byte> row(static_cast<std::size_t>(matrix.columns) * dtype_bytes(type));
      for (std::int64_t i = 0; i < matrix.rows; ++i) {
        matrix.read_rows(i, 1, type, row.data());
        writer.write(row);
      }
    }
  }

  json config() const {
    json config = config_of(source_);
    config["quantization_config"] = json::parse(format_.config);
    if (source_.config().tied_embeddings) {
      config["tie_word_embeddings"] = false;
      const char* text_fields = family_of(source_.config()).text_fields;
      if (text_fields != nullptr && config.contains(text_fields))
        config[text_fields]["tie_word_embeddings"] = false;
    }
    return config;
  }

  const Checkpoint& source_;
  QuantizeOptions options_;
  WrittenFormat format_;
  ThreadPool& pool_;
  const LoadProgress& progress_;
  std::vector<std::vector<Item>> shards_;
  std::uint64_t shard_bytes_ = 0;  // of the last one
  std::uint64_t total_ = 0;
  std::uint64_t done_ = 0;
};

}  // namespace

void write_quantized(const Checkpoint& source,
                     const QuantizeOptions& options,
                     const fs::path& out,
                     ThreadPool& pool,
                     const LoadProgress& progress) {
  Writer(source, options, pool, progress).write(out);
}

}  // namespace ferry
