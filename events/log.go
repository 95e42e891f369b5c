package events

import (
	"strconv"
	"strings"
)

// LogEvent is a fact of an attempt's log.
//
//sumtype:decl
type LogEvent interface {
	Event
	isLog()
}

type logStream struct{}

func (logStream) isLog() {}

// ParseLog reads a log's stream name.
func ParseLog(stream string) (id BuildID, attempt int, ok bool) {
	rest, ok := strings.CutPrefix(stream, "log/")
	if !ok {
		return BuildID{}, 0, false
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 {
		return BuildID{}, 0, false
	}
	attempt, err := strconv.Atoi(rest[i+1:])
	id, ok = ParseBuild("build/" + rest[:i])
	return id, attempt, ok && err == nil && attempt > 0 && strconv.Itoa(attempt) == rest[i+1:]
}

// LogAppended carries one chunk of at most 64 KiB. Chunks are numbered from 0, lines from 1; a chunk holds whole lines, valid UTF-8
// without NUL, ANSI sequences kept, each line ended by \n.
type LogAppended struct {
	logStream
	Chunk     int    `json:"chunk"`
	FirstLine int    `json:"first_line"`
	Lines     int    `json:"lines"`
	Text      string `json:"text"`
}

func (LogAppended) Name() string { return "log.appended.v1" }

func init() {
	register[LogAppended]()
}
