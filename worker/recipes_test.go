package worker

import (
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

// A worker that may not install packages says at once which ones it needs and how it may, with the class of the failure that they are to mend.
func TestPackagesWithoutPermission(t *testing.T) {
	p := newPlane(t)
	w, _ := p.start()
	if _, err := exec.LookPath("apt-get"); err != nil { // what is for another distribution is passed over
		p.publish("other", "1.0", backend("other", "1.0", "return wheel(folder)"))
		p.add(w, "other", "1.0", func(j *api.Job) { j.Recipes = []api.Recipe{{Kind: api.RecipeKindApt, Items: []string{"libpq-dev"}}} })
		if r := p.ended("other", 20*time.Second); r.Status != api.ResultStatusBuilt || !strings.Contains(p.text("other"), "has no apt-get") {
			t.Errorf("%+v\n%s", r, p.text("other"))
		}
		return
	}
	for name, c := range map[string]struct {
		items  []string
		before api.Class
		class  api.Class
		reason string
	}{
		"absent": {[]string{"base-files", "refinery-no-such-package"}, classMissingTool, classMissingTool, "it needs the apt packages refinery-no-such-package: install them on the worker's machine, or start the worker as root with --allow-system-packages"},
		"first":  {[]string{"refinery-no-such-package"}, "", classMissingLibrary, "refinery-no-such-package"},
		// It would be taken for a pattern that fits many.
		"pattern": {[]string{"lib.*"}, "", classOther, "is not the name of a Debian package"},
		"dots":    {[]string{"l.bc6"}, "", classMissingLibrary, "it needs the apt packages l.bc6"},
		"remove":  {[]string{"base-files-"}, "", classOther, "is not the name of a Debian package"},
		"option":  {[]string{"--purge"}, "", classOther, "is not the name of a Debian package"},
	} {
		p.publish(name, "1.0", backend(name, "1.0", "return wheel(folder)"))
		p.add(w, name, "1.0", func(j *api.Job) {
			j.Recipes, j.FailedBefore = []api.Recipe{{Kind: api.RecipeKindApt, Items: c.items}}, c.before
		})
		if r := p.ended(name, 20*time.Second); r.Status != api.ResultStatusFailed || r.Class != c.class || !strings.Contains(r.Reason, c.reason) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	// What is there already needs no permission.
	p.publish("there", "1.0", backend("there", "1.0", "return wheel(folder)"))
	p.add(w, "there", "1.0", func(j *api.Job) { j.Recipes = []api.Recipe{{Kind: api.RecipeKindApt, Items: []string{"base-files"}}} })
	if r := p.ended("there", 20*time.Second); r.Status != api.ResultStatusBuilt || !strings.Contains(p.text("there"), "apt packages base-files are there") {
		t.Errorf("%+v\n%s", r, p.text("there"))
	}
}

// Only root can install packages, and who is not learns so at the start.
func TestPackagesNeedRoot(t *testing.T) {
	w, err := New(Config{URL: "http://127.0.0.1:1", Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Packages: true})
	if err != nil {
		t.Fatal(err)
	}
	err = w.identify()
	if root := os.Getuid() == 0; root != (err == nil) {
		t.Errorf("root is %t: %v", root, err)
	}
}
