// The parsers of single families, which answer_parser.cpp puts into its table.
#pragma once

#include "ferry/text/answer/answer_parser.h"

namespace ferry {

/// <tool_call>{"name": ..., "arguments": ...}</tool_call> (Hermes, Qwen).
std::unique_ptr<AnswerParser> hermes_calls(const ArgumentTypes& types);

/// [TOOL_CALLS] and a list of such objects, or name[ARGS]{...} (Mistral).
std::unique_ptr<AnswerParser> mistral_calls(const ArgumentTypes& types);

/// Sections with marks of their own around name and arguments (DeepSeek, Kimi).
std::unique_ptr<AnswerParser> deepseek_calls(const ArgumentTypes& types);
std::unique_ptr<AnswerParser> kimi_calls(const ArgumentTypes& types);

/// <function=name><parameter=key>value</parameter></function> (Qwen3-Coder).
std::unique_ptr<AnswerParser> qwen_xml_calls(const ArgumentTypes& types);

/// <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call> (GLM-4.5).
std::unique_ptr<AnswerParser> glm_calls(const ArgumentTypes& types);

/// [name(key='value'), ...] (Llama 4).
std::unique_ptr<AnswerParser> pythonic_calls(const ArgumentTypes& types);

/// Channels, thinking among them (gpt-oss).
std::unique_ptr<AnswerParser> harmony_answer(const ArgumentTypes& types);

}  // namespace ferry
