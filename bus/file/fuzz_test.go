package file

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus/bustest"
)

// A segment may hold anything: reading comes to its end, gives only lines that were written, in their order, and what is published behind
// it is read.
func FuzzSegment(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "t", filepath.FromSlash(segmentName(0)))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		tn := defaultTuning()
		tn.sync = func(*os.File) error { return nil }
		b, err := openFile(dir, (&bustest.Log{}).Logger(), tn)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if err := b.Publish("t", message.NewMessage("the-last", nil)); err != nil {
			t.Fatal(err)
		}
		var want []string
		for line := range bytes.Lines(data) {
			if r, err := decodeLine(bytes.TrimSuffix(line, []byte("\n"))); err == nil && bytes.HasSuffix(line, []byte("\n")) {
				want = append(want, r.UUID)
			}
		}
		want = append(want, "the-last")
		tp, err := b.topic("t")
		if err != nil {
			t.Fatal(err)
		}
		c := newCursor(tp, 0)
		defer c.close()
		for begin := time.Now(); len(want) > 0; {
			r, _, err := c.read()
			if err != nil {
				t.Fatal(err)
			}
			if r != nil {
				if r.UUID != want[0] {
					t.Fatalf("%q was read, want %q", r.UUID, want[0])
				}
				want = want[1:]
			} else if time.Since(begin) > 5*time.Second {
				t.Fatalf("%q is not read", want)
			}
		}
		if r, _, err := c.read(); r != nil || err != nil {
			t.Fatalf("after the last: %v %v", r, err)
		}
	})
}
