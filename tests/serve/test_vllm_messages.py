"""vLLM's messages name this project's keys."""

from serve.vllm_messages import in_own_words

FLAGS = {"--enable-auto-tool-choice", "--tool-call-parser", "--trust-request-chat-template"}


def test_flags_become_keys_of_the_config():
    message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    assert in_own_words(message, FLAGS) == (
        '"auto" tool choice requires serve.vllm.enable_auto_tool_choice and serve.vllm.tool_call_parser '
        "to be set, for example serve.vllm: {enable_auto_tool_choice: true, tool_call_parser: hermes}"
    )
    message = "--trust-request-chat-template is not set."
    assert in_own_words(message, FLAGS) == "serve.vllm.trust_request_chat_template is not set."


def test_variables_of_settings_become_keys():
    message = (
        "n must be at most 4. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
    )
    assert in_own_words(message, FLAGS).endswith("set serve.max_choices.")


def test_what_the_client_wrote_stays():
    assert in_own_words("The model `--port` does not exist.", FLAGS) == "The model `--port` does not exist."
