// Package kube has the steps that every caller of the Kubernetes API repeats:
// look an object up that may not exist, create one or adopt the one that an
// earlier attempt created, delete exactly the object that was read.
//
// Errors name the step, the kind and the object: "get Pod velero/x: …". They wrap
// the error of the API server.
package kube

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Find reads an object into the given one and returns it, or nil if the object
// does not exist.
func Find[T client.Object](ctx context.Context, r client.Reader, key client.ObjectKey, into T) (T, error) {
	var none T
	switch err := r.Get(ctx, key, into); {
	case apierrors.IsNotFound(err):
		return none, nil
	case err != nil:
		return none, fmt.Errorf("get %s: %w", describe(into, key), err)
	}
	return into, nil
}

// IsQuota reports whether the API server has no room for an object now. It has no reason code
// for that.
func IsQuota(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota")
}

// Ensure creates an object. It does nothing if an object of the name exists: a cache may
// not show yet what an earlier attempt created.
func Ensure(ctx context.Context, c client.Writer, object client.Object) error {
	if err := c.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s: %w", describe(object, client.ObjectKeyFromObject(object)), err)
	}
	return nil
}

// CreateOrAdopt creates an object and returns it. If that fails, the object may
// exist all the same: an earlier attempt created it, or the answer of the API
// server was lost. Then CreateOrAdopt returns the existing object, provided that
// adoptable accepts it.
func CreateOrAdopt[T client.Object](ctx context.Context, c client.Client, object T, adoptable func(found T) error) (T, error) {
	return AdoptAfter(ctx, c, object, c.Create(ctx, object), adoptable)
}

// AdoptAfter is CreateOrAdopt for a caller that has created the object itself;
// createErr is what came of it.
func AdoptAfter[T client.Object](ctx context.Context, r client.Reader, object T, createErr error, adoptable func(found T) error) (T, error) {
	if createErr == nil {
		return object, nil
	}
	var none T
	key := client.ObjectKeyFromObject(object)
	found, ok := reflect.New(reflect.TypeOf(object).Elem()).Interface().(T)
	if !ok {
		return none, fmt.Errorf("create %s: %w", describe(object, key), createErr)
	}
	found.GetObjectKind().SetGroupVersionKind(object.GetObjectKind().GroupVersionKind())
	if err := r.Get(ctx, key, found); err != nil {
		return none, fmt.Errorf("create %s: %w", describe(object, key), createErr)
	}
	if err := adoptable(found); err != nil {
		return none, fmt.Errorf("adopt %s: %w", describe(object, key), err)
	}
	return found, nil
}

// Delete deletes the object that was read and no other of its name. It does
// nothing if the object is gone or is being deleted.
func Delete(ctx context.Context, c client.Writer, object client.Object, options ...client.DeleteOption) error {
	if object.GetDeletionTimestamp() != nil {
		return nil
	}
	uid := object.GetUID()
	err := c.Delete(ctx, object, append(options, client.Preconditions{UID: &uid})...)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %s: %w", describe(object, client.ObjectKeyFromObject(object)), err)
	}
	return nil
}

// SetLabel sets a label of an object.
func SetLabel(object client.Object, key, value string) {
	object.SetLabels(with(object.GetLabels(), key, value))
}

// SetAnnotation sets an annotation of an object.
func SetAnnotation(object client.Object, key, value string) {
	object.SetAnnotations(with(object.GetAnnotations(), key, value))
}

func with(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// describe returns "Kind name" or "Kind namespace/name".
func describe(object client.Object, key client.ObjectKey) string {
	kind := object.GetObjectKind().GroupVersionKind().Kind
	if kind == "" {
		kind = reflect.TypeOf(object).Elem().Name()
	}
	if key.Namespace == "" {
		return kind + " " + key.Name
	}
	return kind + " " + key.String()
}

// PodOf returns the name of the pod that a PVC was made for as a generic ephemeral volume, or
// "". Kubernetes lets the pod use no other PVC.
func PodOf(pvc *corev1.PersistentVolumeClaim) string {
	if owner := metav1.GetControllerOf(pvc); owner != nil && owner.Kind == "Pod" {
		return owner.Name
	}
	return ""
}
