#!/bin/sh
# Makes the environments in which other programs' clients run against kiloq serve (tests/serve/test_clients.py): one for
# each group of packages that can live together, because openai has three majors that programs pin.
#
#     benchmarks/clients.sh [NAME...]      all of them, or some; in KILOQ_CLIENTS (default ~/.cache/kiloq-clients)
#
# Each NAME/installed.txt lists what was installed. What does not install is said, and the rest goes on; a second run is
# a no-op. Needs python3 with venv, npm with Node.js 20 or newer, about 2 GB of disk, and package indexes.
set -u

root=${KILOQ_CLIENTS:-$HOME/.cache/kiloq-clients}
failed=

packages() {
    case $1 in
    openai3) echo "openai==3.57.0 llm==0.36" ;;
    openai2) echo "openai==2.54.0 litellm==1.110.2 langchain-openai==1.7.4 smolagents==1.26.0 qwen-agent==0.0.34" \
        "soundfile==0.14.0 numpy==2.4.6" ;;            # the last two: Qwen-Agent imports them and does not say so
    openai0) echo "openai==0.28.1 numpy==2.4.6" ;;     # embeddings need numpy
    lm_eval) echo "lm-eval[api]==0.4.13" ;;            # without torch: a server's model needs none
    schemathesis) echo "schemathesis==4.32.5" ;;
    dashscope) echo "dashscope==2.0.2" ;;
    node) echo "openai@6.49.0 ai@6.0.326 @ai-sdk/openai-compatible@2.0.92 zod@4.6.7" ;;   # the newest for Node.js 20
    esac
}

install() {  # FOLDER PACKAGE...
    folder=$1
    shift
    if [ "${folder##*/}" = node ]; then
        command -v npm >/dev/null || { echo "there is no npm" >&2; return 1; }
        echo '{"private": true}' > "$folder/package.json"
        npm install --prefix "$folder" --no-audit --no-fund --silent --save-exact "$@" >&2 &&
            npm ls --prefix "$folder" --all > "$folder/installed.txt"
    else
        python3 -m venv "$folder" && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2 &&
            "$folder/bin/python" -m pip freeze > "$folder/installed.txt"
    fi
}

[ $# -gt 0 ] || set -- openai3 openai2 openai0 lm_eval schemathesis dashscope node
for name; do
    wanted=$(packages "$name")
    if [ -z "$wanted" ]; then
        echo "there is no environment $name: it can be openai3 openai2 openai0 lm_eval schemathesis dashscope node" >&2
        exit 2
    fi
    if [ "$(cat "$root/$name/wanted.txt" 2>/dev/null)" = "$wanted" ]; then
        echo "$name: is there already ($wanted)" >&2
        continue
    fi
    mkdir -p "$root/$name"
    rm -f "$root/$name/wanted.txt"  # the mark of a whole environment
    # shellcheck disable=SC2086  # the packages are words
    if install "$root/$name" $wanted; then
        echo "$wanted" > "$root/$name/wanted.txt"
        echo "$name: installed $wanted" >&2
    else
        failed="$failed $name"
        echo "$name: could not be installed ($wanted): its tests will skip" >&2
    fi
done
[ -z "$failed" ] || { echo "not installed:$failed" >&2; exit 1; }
