package file

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"pgregory.net/rapid"

	"github.com/wheelrefinery/refinery/bus/bustest"
)

func encoded(t rapid.TB, m *message.Message) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := encodeLine(&buf, "t", m, time.Now()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func genMessage(t *rapid.T) *message.Message {
	m := message.NewMessage(rapid.String().Draw(t, "uuid"), rapid.OneOf(
		rapid.SliceOf(rapid.Byte()),
		rapid.Custom(func(t *rapid.T) []byte { return []byte(rapid.String().Draw(t, "text")) }),
	).Draw(t, "payload"))
	m.Metadata = rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "metadata")
	return m
}

func TestLineRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genMessage(t)
		line := encoded(t, m)
		if !utf8.Valid(line) || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("not one line of text: %q", line)
		}
		r, err := decodeLine(line[:len(line)-1])
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Message(); !got.Equals(m) {
			t.Fatalf("stored %v, read %v", m, got)
		}
	})
}

func TestLineDamage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		line := encoded(t, genMessage(t))
		line = line[:len(line)-1]
		damaged := bytes.Clone(line)
		damaged[rapid.IntRange(0, len(line)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "xor"))
		if _, err := decodeLine(damaged); err == nil {
			t.Fatalf("accepted %q, made from %q", damaged, line)
		}
		if _, err := decodeLine(line[:rapid.IntRange(0, len(line)-1).Draw(t, "cut")]); err == nil {
			t.Fatal("accepted a part of a line")
		}
	})
}

func TestLineIsReadable(t *testing.T) {
	m := message.NewMessage("id", []byte("héllo <&>"))
	var buf bytes.Buffer
	if err := encodeLine(&buf, "t", m, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	const want = `{"crc32c":"a7713b51","msg":{"uuid":"id","time":"2026-01-02T03:04:05Z","text":"héllo <&>"}}` + "\n"
	if buf.String() != want {
		t.Errorf("line is\n%s want\n%s", &buf, want)
	}
}

func FuzzDecodeLine(f *testing.F) {
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := decodeLine(line)
		if err != nil {
			return
		}
		// What is accepted is a message: storing it again gives it again.
		m := r.Message()
		again := encoded(t, m)
		r2, err := decodeLine(again[:len(again)-1])
		if err != nil || !r2.Message().Equals(m) {
			t.Fatalf("%q became %q: %v", line, again, err)
		}
	})
}

// A topic's segments hold lines, damaged lines, and a torn tail each: the cursor delivers exactly the lines, in order, and
// reports each damage once.
func TestCursorPassesDamage(t *testing.T) {
	root := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(root, fmt.Sprint(n))
		segments := filepath.Join(dir, "t", "segments")
		if err := os.MkdirAll(segments, 0o700); err != nil {
			t.Fatal(err)
		}
		var want []string
		base, damaged := int64(0), 0
		for range rapid.IntRange(1, 3).Draw(t, "segments") {
			var data []byte
			for i := range rapid.IntRange(0, 6).Draw(t, "lines") {
				m := message.NewMessage(fmt.Sprint(base, "-", i), []byte(rapid.StringN(0, 5, -1).Draw(t, "payload")))
				line := encoded(t, m)
				switch rapid.SampledFrom([]string{"good", "good", "flipped", "noise"}).Draw(t, "kind") {
				case "good":
					want = append(want, m.UUID)
				case "flipped":
					line[rapid.IntRange(0, len(line)-2).Draw(t, "at")] ^= 0x80
					damaged++
				case "noise":
					line = append(bytes.ReplaceAll(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "noise"), []byte("\n"), nil), '\n')
					damaged++
				}
				data = append(data, line...)
			}
			size := int64(len(data))
			if rapid.Bool().Draw(t, "torn") {
				data = append(data, `{"crc32c":"0000`...)
				damaged++
			}
			if err := os.WriteFile(filepath.Join(segments, filepath.Base(segmentName(base))), data, 0o600); err != nil {
				t.Fatal(err)
			}
			base += max(size, 1) + rapid.Int64Range(0, 30).Draw(t, "gap")
		}
		// An empty last segment seals the others.
		if err := os.WriteFile(filepath.Join(segments, filepath.Base(segmentName(base))), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		log := &bustest.Log{}
		b, err := openFile(dir, log.Logger(), defaultTuning())
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		tp, err := b.topic("t")
		if err != nil {
			t.Fatal(err)
		}
		c := newCursor(tp, 0)
		defer c.close()
		var got []string
		for {
			r, _, err := c.read()
			if err != nil {
				t.Fatal(err)
			}
			if r == nil {
				break
			}
			got = append(got, r.UUID)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("read %q, want %q", got, want)
		}
		if n := log.Count("\n"); n != damaged {
			t.Fatalf("%d reports of %d damages:\n%s", n, damaged, log)
		}
		if c.pos != base {
			t.Fatalf("cursor stands at %d, want %d", c.pos, base)
		}
	})
}
