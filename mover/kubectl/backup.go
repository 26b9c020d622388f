package kubectl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/blockmover/blockmover/internal/identity"
)

func newBackupCommand(s *session) *cobra.Command {
	cmd := group("backup", "Make backups")
	cmd.AddCommand(newCreateCommand(s, "backup", "create NAME [--full|--incremental] [--wait] [flags of `velero backup create`]",
		"Make a backup, and say whether its images are full"))
	return cmd
}

func newScheduleCommand(s *session) *cobra.Command {
	cmd := group("schedule", "Make schedules of backups")
	cmd.AddCommand(newCreateCommand(s, "schedule", "create NAME [--full|--incremental] [flags of `velero schedule create`]",
		"Make a schedule, and say whether the images of its backups are full"))
	return cmd
}

// group is a command that has only subcommands.
func group(name, short string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

func newCreateCommand(s *session, kind, use, short string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Long: short + ". The command line of Velero makes the object, so it has the flags of\n" +
			"the velero that is installed here. --full or --incremental becomes the annotation\n" +
			identity.AnnotationBackupType + ", which every version of Velero keeps.",
		DisableFlagParsing: true, // they are Velero's
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.ContainsFunc(args, func(a string) bool { return a == "-h" || a == "--help" }) {
				return cmd.Help()
			}
			c, err := s.parseCreate(args)
			if err != nil {
				return err
			}
			if c.wait && kind != "backup" {
				return errors.New("a schedule is not waited for: leave out --wait")
			}
			return s.run(func(ctx context.Context, _ []string) error { return s.create(ctx, kind, c) })(cmd, nil)
		},
	}
}

// creation is what a create command was asked for.
type creation struct {
	// Type is full, incremental, or "" if nobody said.
	Type string
	wait bool
	// velero are the arguments for Velero.
	velero []string
}

// parseCreate takes our flags out of the arguments. Those of kubectl say where the cluster is; Velero
// has other names for some.
func (s *session) parseCreate(args []string) (creation, error) {
	var c creation
	places := map[string]struct {
		into   **string
		velero string
	}{
		"--kubeconfig": {&s.config.KubeConfig, "--kubeconfig"},
		"--context":    {&s.config.Context, "--kubecontext"},
		"--namespace":  {&s.config.Namespace, ""},
		"-n":           {&s.config.Namespace, ""},
	}
	for i := 0; i < len(args); i++ {
		name, value, hasValue := strings.Cut(args[i], "=")
		place, isPlace := places[name]
		switch {
		case isPlace:
			if !hasValue {
				if i++; i == len(args) {
					return c, fmt.Errorf("flag %s needs a value", name)
				}
				value = args[i]
			}
			*place.into = &value
			if place.velero != "" {
				c.velero = append(c.velero, place.velero, value)
			}
		case args[i] == "--full" || args[i] == "--incremental":
			wanted := strings.TrimPrefix(args[i], "--")
			if c.Type != "" && c.Type != wanted {
				return c, errors.New("--full and --incremental exclude each other")
			}
			c.Type = wanted
		case args[i] == "--wait" || args[i] == "-w":
			c.wait = true
		case name == "--output" || name == "-o":
			return c, errors.New("--output does not go with this command: it creates the object")
		default:
			c.velero = append(c.velero, args[i])
		}
	}
	return c, nil
}

// create has Velero render the object, and creates it.
func (s *session) create(ctx context.Context, kind string, c creation) error {
	args := append([]string{kind, "create", "--namespace", s.namespace(), "--output", "yaml"}, c.velero...)
	cmd := exec.CommandContext(ctx, "velero", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("run velero: %w: install Velero's command line", err)
		}
		return fmt.Errorf("run velero %s create: %w: %s", kind, err, strings.TrimSpace(stderr.String()))
	}
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(stdout.Bytes(), &object.Object); err != nil {
		return fmt.Errorf("read what velero %s create prints: %w", kind, err)
	}
	unstructured.RemoveNestedField(object.Object, "status")
	unstructured.RemoveNestedField(object.Object, "metadata", "creationTimestamp")
	if c.Type != "" {
		annotations := object.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[identity.AnnotationBackupType] = c.Type
		object.SetAnnotations(annotations)
	}
	object.SetNamespace(s.namespace())
	if err := s.Client.Create(ctx, object); err != nil {
		return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	if _, err := fmt.Fprintf(s.Streams.Out, "%s %s was created in namespace %s\n", object.GetKind(), object.GetName(), s.namespace()); err != nil {
		return err
	}
	if !c.wait {
		return nil
	}
	return s.wait(ctx, object.GetName())
}

// ended are the phases of a Backup that has ended.
var ended = []velerov1.BackupPhase{
	velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed, velerov1.BackupPhaseFailed, velerov1.BackupPhaseFailedValidation,
}

// wait shows a backup until it has ended. It fails unless the backup is complete.
func (s *session) wait(ctx context.Context, name string) error {
	v := &viewer{session: s, format: "table", filter: name, all: true, bars: true}
	said := map[string]string{}
	last := velerov1.BackupPhase("")
	for {
		backup := &velerov1.Backup{}
		if err := s.Client.Get(ctx, client.ObjectKey{Namespace: s.namespace(), Name: name}, backup); err != nil {
			return fmt.Errorf("get Backup %s: %w", name, err)
		}
		found, err := v.look(ctx)
		if err != nil {
			return err
		}
		title := fmt.Sprintf("Backup %s: %s", name, or(string(backup.Status.Phase)))
		switch {
		case v.live():
			err = v.draw(title+"\n", found)
		case backup.Status.Phase != last:
			if _, err = fmt.Fprintln(s.Streams.Out, v.at.UTC().Format(time.RFC3339), title); err != nil {
				return err
			}
			fallthrough
		default:
			err = v.lines(found, said)
		}
		if err != nil {
			return err
		}
		last = backup.Status.Phase
		if slices.Contains(ended, last) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for Backup %s: %w; it goes on", name, ctx.Err())
		case <-time.After(2 * time.Second):
		}
	}
	if last != velerov1.BackupPhaseCompleted {
		return fmt.Errorf("Backup %s is %s: see `velero backup describe %s --details`", name, last, name) //nolint:staticcheck // Backup is the name of a kind
	}
	return nil
}
