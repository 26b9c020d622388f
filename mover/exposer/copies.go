package exposer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/phase"
)

// Copies are Secrets and ConfigMaps that a storage driver looks for in the namespace of a PVC, by kind
// and name: "Secret/token,ConfigMap/kms". An operation has them copied from the namespace of its volume
// to Velero's, where its own PVC is.
//
// The driver looks for a name, so a copy has the name of its original. A copy is ours if it has our
// label, and it says what it is a copy of. Operations with the same original share it: it belongs to all
// of them, and goes with the last. An operation whose volume is in another namespace waits until then.
// What has the name and not our label is never changed.
//
// The manager may not list Secrets. So an operation records the names before it copies anything.
type Copies string

// ErrNoOriginal is returned if there is nothing to copy.
var ErrNoOriginal = errors.New("the configuration names a Secret or a ConfigMap for the driver of the volume that does not exist")

// CopiesOf returns the copies with these names. Their order is the same for all operations, so two of
// them never wait for each other.
func CopiesOf(secrets, configMaps []string) Copies {
	all := make([]string, 0, len(secrets)+len(configMaps))
	for _, name := range secrets {
		all = append(all, "Secret/"+name)
	}
	for _, name := range configMaps {
		all = append(all, "ConfigMap/"+name)
	}
	slices.Sort(all)
	return Copies(strings.Join(slices.Compact(all), ","))
}

// With returns both.
func (c Copies) With(other Copies) Copies {
	all := slices.Concat(c.list(), other.list())
	slices.Sort(all)
	return Copies(strings.Join(slices.Compact(all), ","))
}

func (c Copies) list() []string {
	if c == "" {
		return nil
	}
	return strings.Split(string(c), ",")
}

// blank returns an empty object of the kind of a copy, and its name.
func blank(copied string) (client.Object, string) {
	kind, name, _ := strings.Cut(copied, "/")
	if kind == "Secret" {
		return &corev1.Secret{}, name
	}
	return &corev1.ConfigMap{}, name
}

// EnsureCopies makes the copies, or what is missing of them, from a namespace. It returns what it
// waits for, or "" when all are there.
func (e *Exposer) EnsureCopies(ctx context.Context, op identity.Operation, namespace string, copies Copies) (waiting string, err error) {
	if namespace == e.Namespace {
		return "", nil // they are there
	}
	for _, c := range copies.list() {
		if waiting, err := e.ensureCopy(ctx, op, namespace, c); err != nil || waiting != "" {
			return waiting, err
		}
	}
	return "", nil
}

func (e *Exposer) ensureCopy(ctx context.Context, op identity.Operation, namespace, copied string) (waiting string, err error) {
	original, name := blank(copied)
	original, err = kube.Find(ctx, e.Reader, client.ObjectKey{Namespace: namespace, Name: name}, original)
	switch {
	case err != nil:
		return "", notGranted(err)
	case original == nil:
		return "", fmt.Errorf("%w: there is no %s in namespace %s", ErrNoOriginal, copied, namespace)
	}
	found, _ := blank(copied)
	found, err = kube.Find(ctx, e.Reader, client.ObjectKey{Namespace: e.Namespace, Name: name}, found)
	switch {
	case err != nil:
		return "", notGranted(err)
	case found == nil:
		return "", notGranted(kube.Ensure(ctx, e.Client, e.copyOf(op, original, name)))
	case found.GetLabels()[identity.LabelCopy] == "":
		return "", fmt.Errorf("%w: %s exists in namespace %s and is no copy of ours: it is not replaced by that of namespace %s",
			phase.ErrBroken, copied, e.Namespace, namespace)
	case found.GetAnnotations()[identity.AnnotationCopyOf] != namespace+"/"+name || found.GetDeletionTimestamp() != nil:
		return fmt.Sprintf("%s in namespace %s is a copy of %s, which another operation needs", copied, e.Namespace, found.GetAnnotations()[identity.AnnotationCopyOf]), nil
	}
	before, _ := found.DeepCopyObject().(client.Object)
	if !owns(found, op) {
		found.SetOwnerReferences(append(found.GetOwnerReferences(), ownerOf(op)))
	}
	fill(found, original)
	if equality.Semantic.DeepEqual(before, found) {
		return "", nil
	}
	return "", notGranted(e.patchCopy(ctx, found, before))
}

// copyOf plans a copy. Labels and annotations of the original stay behind: some have a meaning in
// Velero's namespace.
func (e *Exposer) copyOf(op identity.Operation, original client.Object, name string) client.Object {
	meta := metav1.ObjectMeta{
		Namespace: e.Namespace, Name: name,
		Labels:          map[string]string{identity.LabelCopy: "true", velerov1.ExcludeFromBackupLabel: "true"},
		Annotations:     map[string]string{identity.AnnotationCopyOf: original.GetNamespace() + "/" + name},
		OwnerReferences: []metav1.OwnerReference{ownerOf(op)},
	}
	var planned client.Object = &corev1.ConfigMap{ObjectMeta: meta}
	if secret, ok := original.(*corev1.Secret); ok {
		planned = &corev1.Secret{ObjectMeta: meta, Type: secret.Type}
	}
	fill(planned, original)
	return planned
}

// fill gives a copy the content of its original.
func fill(copied, original client.Object) {
	switch from := original.(type) {
	case *corev1.Secret:
		if to, ok := copied.(*corev1.Secret); ok {
			to.Data = maps.Clone(from.Data)
		}
	case *corev1.ConfigMap:
		if to, ok := copied.(*corev1.ConfigMap); ok {
			to.Data, to.BinaryData = maps.Clone(from.Data), maps.Clone(from.BinaryData)
		}
	}
}

// ReleaseCopies takes an operation out of its copies, and deletes those that no other one has. A copy
// that the manager may not read any more, or never might, goes with its operations.
func (e *Exposer) ReleaseCopies(ctx context.Context, op identity.Operation, copies Copies) error {
	for _, c := range copies.list() {
		found, name := blank(c)
		found, err := kube.Find(ctx, e.Reader, client.ObjectKey{Namespace: e.Namespace, Name: name}, found)
		if apierrors.IsForbidden(err) {
			continue
		}
		if err != nil {
			return err
		}
		if found == nil || found.GetLabels()[identity.LabelCopy] == "" || !owns(found, op) {
			continue
		}
		before, _ := found.DeepCopyObject().(client.Object)
		found.SetOwnerReferences(slices.DeleteFunc(found.GetOwnerReferences(), func(o metav1.OwnerReference) bool { return o.UID == types.UID(op.UID) }))
		if len(found.GetOwnerReferences()) > 0 {
			err = e.patchCopy(ctx, found, before)
		} else {
			version := found.GetResourceVersion()
			err = kube.Delete(ctx, e.Client, found, client.Preconditions{ResourceVersion: &version})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Exposer) patchCopy(ctx context.Context, copied, before client.Object) error {
	if err := e.Client.Patch(ctx, copied, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("change copy %s of %s: %w", client.ObjectKeyFromObject(copied), copied.GetAnnotations()[identity.AnnotationCopyOf], err)
	}
	return nil
}

func owns(object client.Object, op identity.Operation) bool {
	return slices.ContainsFunc(object.GetOwnerReferences(), func(o metav1.OwnerReference) bool { return o.UID == types.UID(op.UID) })
}

// ownerOf lets the API server delete a copy whose operations are all gone.
func ownerOf(op identity.Operation) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: velerov2alpha1.SchemeGroupVersion.String(), Kind: op.Kind, Name: op.Name, UID: types.UID(op.UID)}
}

// notGranted makes a missing right final, and says how to give it.
func notGranted(err error) error {
	if apierrors.IsForbidden(err) && !kube.IsQuota(err) {
		return fmt.Errorf("%w: %w: grant it with the component deploy/copies, or take the name out of the configuration", phase.ErrBroken, err)
	}
	return err
}
