package file

import (
	"os"
	"testing"

	"github.com/wheelrefinery/refinery/bus/bustest"
)

// BenchmarkBareFsync is what one publisher could reach at most: one write and fsync for each message.
func BenchmarkBareFsync(b *testing.B) {
	f, err := os.Create(b.TempDir() + "/f")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line := make([]byte, 450)
	for b.Loop() {
		if _, err := f.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFile(b *testing.B) { bustest.Bench(b, open(b, b.TempDir())) }
