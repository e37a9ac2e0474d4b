// A GGUF file as a whole model: header, metadata as config and tokenizer, tensors, and the matrices
// in them.

#include "ferry/checkpoint/gguf/gguf_source.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/model/config.h"
#include "ferry/text/tokenizer.h"
#include "fuzz/fuzz_entry.h"
#include "fuzz/memory_file.h"

namespace {

void read_matrix(const ferry::TensorSource& source,
                 const ferry::StoredFormat& format,
                 const ferry::SourceTensor& tensor) {
  const ferry::MatrixPlace place{
      .name = tensor.name, .rows = tensor.shape[0], .columns = tensor.shape[1]};
  const ferry::StoredMatrix matrix = ferry::find_matrix(source, &format, place);
  std::vector<float> row(static_cast<std::size_t>(place.columns));
  for (std::int64_t i = 0; i < place.rows; ++i)
    matrix.read_rows(i, 1, ferry::DType::f32, reinterpret_cast<std::byte*>(row.data()));
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ferry::test::MemoryFile memory(data, size);
  ferry::test::run_on_input([&] {
    const auto source = ferry::open_gguf_file(memory.path());
    volatile unsigned sum = 0;  // every byte that the header promises is there
    for (const auto& tensor : source->tensors())
      for (const std::byte b : tensor.data) sum = sum + std::to_integer<unsigned>(b);
    if (const auto text = source->text("tokenizer.json")) {
      const auto tokenizer = ferry::Tokenizer::parse(text->text, text->file);
      static_cast<void>(tokenizer.decode(tokenizer.encode("Abc 12\n")));
    }
    static_cast<void>(source->text("tokenizer_config.json"));
    const ferry::ModelConfig config = ferry::load_config(*source);
    for (const auto& tensor : source->tensors())
      if (tensor.shape.size() == 2) read_matrix(*source, *config.stored_format, tensor);
  });
  return 0;
}
