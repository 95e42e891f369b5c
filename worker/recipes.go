package worker

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/wheelrefinery/refinery/api"
)

var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=[^\x00\n]*$`)

// Variables that recipes may not set: they are how the worker runs a build.
var reserved = []string{"PATH", "HOME", "TMPDIR", "USER", "LOGNAME", "VIRTUAL_ENV"}

// addition is what recipes give a build beside what it asks for itself.
type addition struct {
	env          map[string]string
	requirements []string // of the build
	limits       []string // constraints of the build requirements
}

// apply does what the recipes of a job say. Packages of the distribution that are missing are installed, or fail the build where that is
// not allowed.
func (w *Worker) apply(ctx context.Context, job *api.Job, log *logStream) (addition, error) {
	add := addition{env: map[string]string{}}
	for _, r := range job.Recipes {
		switch r.Kind {
		case api.RecipeKindEnv:
			for _, item := range r.Items {
				name, value, _ := strings.Cut(item, "=")
				if len(item) > 4096 || !assignment.MatchString(item) || slices.Contains(reserved, name) || strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "UV_") {
					return add, &fault{Class: classOther, Reason: fmt.Sprintf("the recipe's assignment %.100q is not allowed", item)}
				}
				add.env[name] = value
			}
			log.say(ctx, "recipe: %s", strings.Join(r.Items, " "))
		case api.RecipeKindPip:
			add.requirements = append(add.requirements, r.Items...)
			log.say(ctx, "recipe: build with %s", strings.Join(r.Items, " "))
		case api.RecipeKindConstraint:
			add.limits = append(add.limits, r.Items...)
			log.say(ctx, "recipe: build requirements within %s", strings.Join(r.Items, " "))
		case api.RecipeKindApt, api.RecipeKindDnf:
			if err := w.packages(ctx, job, r, log); err != nil {
				return add, err
			}
		case api.RecipeKindVersion: // nothing to do: another version builds
		default:
			log.say(ctx, "recipe: this worker does not know the kind %s", r.Kind)
		}
	}
	return add, nil
}
