package worker

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"testing"
	"time"
)

// An order of any length is read as a whole: one whose JSON just filled the reader's buffer left its line end behind, which was taken for
// the worker's word to stop.
func TestOrderOfAnyLength(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(Config{URL: "http://127.0.0.1:1", Dir: t.TempDir(), BuildUser: me.Username, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	w.builder = identity{uid: -1, gid: -1}
	b, err := w.newBox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	for _, full := range []int{1536, 3584} { // what the decoder's buffer grows to
		for length := full - 2; length <= full+2; length++ {
			c := command{argv: []string{"/bin/sleep", "0.05"}, timeout: time.Minute, stdout: null, stderr: null, env: map[string]string{"PAD": ""}}
			data, err := json.Marshal(b.order(c))
			if err != nil || len(data) > length {
				t.Fatal(err, len(data))
			}
			c.env["PAD"] = strings.Repeat("x", length-len(data))
			if r, err := b.run(t.Context(), c); err != nil || r != (report{}) {
				t.Errorf("%d bytes: %+v, %v", length, r, err)
			}
		}
	}
}
