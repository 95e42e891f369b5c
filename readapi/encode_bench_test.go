package readapi

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

// BenchmarkEncode encodes a page of 500 history entries.
func BenchmarkEncode(b *testing.B) {
	rows := make([]projections.HistoryRow, 500)
	for i := range rows {
		rows[i] = projections.HistoryRow{
			Position: int64(1_000_000 + i), Time: time.Now().UTC(), Target: projections.Target{Name: "project-17", Version: "1.2.3", PythonTag: "cp311", PlatformTag: "linux_s390x"},
			Status: "failed", Attempt: 1, Run: uuid.New(), Worker: "worker-1", Class: "compiler", Reason: "fatal error: header-1.h: No such file or directory", DurationMS: 12345,
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encode(api.HistoryList{Items: convert(rows, historyEntry)}); err != nil {
			b.Fatal(err)
		}
	}
}
