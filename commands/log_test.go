package commands

import (
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func chunk(n int, text string) AppendLog {
	return AppendLog{Build: flask, Attempt: 1, Chunk: n, Text: text}
}

var (
	chunk0  = events.LogAppended{Chunk: 0, FirstLine: 1, Lines: 2, Text: "a\nb\n"}
	fullLog = func() (full []events.Event) {
		text := strings.Repeat("x", mostChunk-1) + "\n"
		for i := range mostLog / mostChunk {
			full = append(full, events.LogAppended{Chunk: i, FirstLine: i + 1, Lines: 1, Text: text})
		}
		return full
	}()
)

var logScenarios = []scenario{
	{"the first chunk", nil, chunk(0, "a\nb\n"), then(chunk0), "", ""},
	{"a last line without an end", nil, chunk(0, "a\nb"), then(chunk0), "", ""},
	{"the next chunk", given(chunk0), chunk(1, "c\n"), then(events.LogAppended{Chunk: 1, FirstLine: 3, Lines: 1, Text: "c\n"}), "", ""},
	{"an empty line", given(chunk0), chunk(1, "\n"), then(events.LogAppended{Chunk: 1, FirstLine: 3, Lines: 1, Text: "\n"}), "", ""},
	{"twice", given(chunk0), chunk(0, "a\nb\n"), nil, "", ""},
	{"with a gap", given(chunk0), chunk(2, "d\n"), nil, fault.Conflict, "chunk 1 is next, not 2: send what is missing first"},
	{"over the limit", fullLog, chunk(mostLog/mostChunk, "x\n"), nil, fault.TooLarge, "at its limit"},
	{"twice at the limit", fullLog, chunk(mostLog/mostChunk-1, "x\n"), nil, "", ""},
	{
		"up to the limit", fullLog[:len(fullLog)-1], chunk(mostLog/mostChunk-1, fullLog[0].(events.LogAppended).Text),
		then(fullLog[len(fullLog)-1]), "", "",
	},
}

func TestLog(t *testing.T) { check(t, logScenarios) }
